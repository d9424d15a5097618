"""Neighbours against brute force; an index is read for what it was built of."""

import json
from collections import UserList
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_af.config import Config, RetrievalConfig, StageConfig
from megatron_af.foreign import ForeignError
from megatron_af.retrieval.catalogue import Catalogue, read_catalogue
from megatron_af.retrieval.index import NeighbourIndex, StaleIndex, index_folder, index_inputs
from megatron_af.runs.digests import digest_files
from tests.retrieval.clustered import clustered
from tests.retrieval.toy import retrieval_config, write_checkpoint


def catalogue_of(recordings: list[int], rows_per_piece: int = 1) -> Catalogue:
    pieces = len(recordings)
    return Catalogue(
        row_N=np.arange(pieces * rows_per_piece),
        piece_N=np.tile(np.arange(pieces), rows_per_piece),
        key_P=[f"{p:064}" for p in range(pieces)],
        audio_P=[f"{r:064}" for r in recordings],
        recording_P=np.array(recordings),
        left_out={},
    )


def brute_force(
    vector_PJ: NDArray[np.float32], recordings: list[int], query: NDArray[np.float32], count: int, own: set[int]
) -> list[int]:
    seen, chosen = set(own), []
    for piece in np.argsort(-(vector_PJ @ query), kind="stable").tolist():
        if recordings[piece] not in seen and len(chosen) < count:
            seen.add(recordings[piece])
            chosen.append(piece)
    return chosen


def test_exact_neighbours_are_those_of_brute_force(tmp_path: Path) -> None:
    pieces = 500
    recordings = [0] * 120 + list(range(1, 381))  # the pieces of a long recording take more than the spare places
    vector_PJ = clustered(pieces, 3)
    vector_PJ[:120] = vector_PJ[0]
    index = NeighbourIndex.make(catalogue_of(recordings), vector_PJ, tmp_path / "index", {})
    own = [{recordings[piece]} for piece in range(pieces)]
    found = index.nearest(vector_PJ, 7, own=own)
    for piece in range(pieces):
        expected = brute_force(vector_PJ, recordings, vector_PJ[piece], 7, own[piece])
        assert [n for n, _ in found[piece]] == expected or np.allclose(
            [s for _, s in found[piece]], vector_PJ[expected] @ vector_PJ[piece], atol=1e-6
        )  # equal pieces are equally near
        assert len({recordings[n] for n, _ in found[piece]} - own[piece]) == 7
    near = vector_PJ[:1]
    assert index.nearest(near, 1, own=[set()])[0][0][1] == pytest.approx(1.0)
    assert len(index.nearest(near, 400, own=[{0}])[0]) == 380, "as many as there are"
    assert np.array_equal(index.vectors(np.array([3, 130])), vector_PJ[[3, 130]])


def test_rows_of_a_piece(tmp_path: Path) -> None:
    catalogue = catalogue_of([0, 1, 2], rows_per_piece=2)
    index = NeighbourIndex.make(catalogue, clustered(3, 1), tmp_path / "index", {})
    assert [index.rows_of(piece).tolist() for piece in range(3)] == [[0, 3], [1, 4], [2, 5]]
    assert index.recordings_of([f"{1:064}", "unknown"]) == {1}


def test_a_query_does_not_look_through_all_pieces_for_its_recording(tmp_path: Path) -> None:
    class Counted(UserList[str]):
        read = 0

        def __getitem__(self, place: Any) -> Any:
            self.read += 1
            return super().__getitem__(place)

    catalogue = catalogue_of(list(range(50)))
    audio = Counted(catalogue.audio_P)
    index = NeighbourIndex.make(catalogue, clustered(50, 1), tmp_path / "index", {})
    index.catalogue = replace(index.catalogue, audio_P=audio)
    assert [index.recordings_of([digest]) for digest in catalogue.audio_P] == [{n} for n in range(50)]
    assert audio.read <= 2 * len(catalogue.audio_P)


def build(config: Config) -> NeighbourIndex:
    catalogue = read_catalogue(config, "train")
    folder, inputs = index_folder(config, "train"), index_inputs(config, "train")
    return NeighbourIndex.make(catalogue, clustered(len(catalogue.key_P), 2), folder, inputs)


def test_an_index_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path)
    write_checkpoint(config, "a")
    made, read = build(config), NeighbourIndex.open(config, "train")
    vector = clustered(5, 2)
    assert read.nearest(vector, 4, own=[set()] * 5) == made.nearest(vector, 4, own=[set()] * 5)
    assert read.catalogue.key_P == made.catalogue.key_P and read.catalogue.audio_P == made.catalogue.audio_P
    assert read.rows_of(3).tolist() == made.rows_of(3).tolist()
    build(config)
    assert not list(index_folder(config, "train").parent.glob(".*")), "nothing half-written stays"


@pytest.mark.parametrize("name", ["catalogue.npz", "vectors.0.faiss", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "other bytes", "gone", "{}"])
def test_a_damaged_index_is_told_of(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "index"
    NeighbourIndex.make(catalogue_of([0, 1, 2]), clustered(3, 1), folder, {})
    file = folder / name
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": whole[:-9], "other bytes": b"?" * len(whole)}.get(damage, damage.encode()))
    with pytest.raises((StaleIndex, ForeignError, FileNotFoundError), match=r"index"):
        NeighbourIndex.read(folder)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_one_flipped_bit_is_told_of(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "index"
    settings = RetrievalConfig(index=kind)  # type: ignore[arg-type]
    NeighbourIndex.make(catalogue_of(list(range(300))), clustered(300, 1), folder, {}, settings)
    file = folder / "vectors.0.faiss"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1  # the same length, and no word of its form
    file.write_bytes(data)
    with pytest.raises(StaleIndex, match=r"vectors.0.faiss is not as it was written"):
        NeighbourIndex.read(folder)


@pytest.mark.parametrize(
    ("removed", "told"), [(False, "vectors.0.faiss is not as it was written"), (True, "it holds no vectors")]
)
def test_files_that_an_index_does_not_list_are_not_read(tmp_path: Path, removed: bool, told: str) -> None:
    folder = tmp_path / "index"
    NeighbourIndex.make(catalogue_of([0, 1, 2]), clustered(3, 1), folder, {})
    about = json.loads((folder / "index.json").read_text())
    del about["files"]["vectors.0.faiss"]
    (folder / "index.json").write_text(json.dumps(about))
    if removed:
        (folder / "vectors.0.faiss").unlink()
    with pytest.raises(StaleIndex, match=told):
        NeighbourIndex.read(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivf_pq"])
def test_no_room_is_made_for_vectors_that_a_file_does_not_hold(tmp_path: Path, kind: str) -> None:
    """Wherever a file may say how long a list is, it says 2^28 numbers."""
    folder = tmp_path / "index"
    settings = RetrievalConfig(index=kind)  # type: ignore[arg-type]
    NeighbourIndex.make(catalogue_of(list(range(300))), clustered(300, 1), folder, {}, settings)
    file = folder / "vectors.0.faiss"
    whole = file.read_bytes()
    places = [at for at in range(len(whole) - 8) if 16 <= int.from_bytes(whole[at : at + 8], "little") <= len(whole)]
    refused = 0
    for at in places:
        file.write_bytes(whole[:at] + (1 << 28).to_bytes(8, "little") + whole[at + 8 :])
        about = json.loads((folder / "index.json").read_text())
        about["files"] |= digest_files(folder, [file.name])
        (folder / "index.json").write_text(json.dumps(about))
        Path("/proc/self/clear_refs").write_text("5")
        before = most_kib()
        try:
            NeighbourIndex.read(folder)
        except StaleIndex:
            refused += 1
        assert most_kib() - before < 64_000, at
    assert refused


def most_kib() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def test_a_changed_encoder_or_data_never_reads_an_old_index(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path)
    write_checkpoint(config, "a")
    with pytest.raises(StaleIndex, match=r"train has no index in .*; run tools/build_retrieval.py index"):
        NeighbourIndex.open(config, "train")
    build(config)
    write_checkpoint(config, "b")
    with pytest.raises(StaleIndex, match="built before encoder changed"):
        NeighbourIndex.open(config, "train")
    build(config)
    wider = replace(config, curriculum={**config.curriculum, "clap": replace(config.curriculum["clap"], max_windows=2)})
    with pytest.raises(StaleIndex, match="encoder"):
        NeighbourIndex.open(wider, "train")
    manifest = tmp_path / "data/train.jsonl"
    manifest.write_text(manifest.read_text() + manifest.read_text().splitlines()[0] + "\n")
    with pytest.raises(StaleIndex, match="data/train changed"):
        NeighbourIndex.open(config, "train")
    build(config)
    other = replace(config, retrieval=replace(config.retrieval, index="ivf"))
    with pytest.raises(StaleIndex, match=r"retrieval\.index, recall or shard_clips changed"):
        NeighbourIndex.open(other, "train")
    held_out = {"last": StageConfig(evaluation=("knn",))}
    (tmp_path / "data/knn.jsonl").write_text("")
    with pytest.raises(StaleIndex, match="held out/knn changed"):
        NeighbourIndex.open(replace(config, curriculum={**config.curriculum, **held_out}), "train")
