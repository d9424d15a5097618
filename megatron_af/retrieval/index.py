"""The index of a data set: which of its rows sound most like a given embedding.

    index = NeighbourIndex.open(config, "clotho")         # raises StaleIndex where encoder or data have changed
    for piece, similarity in index.nearest(vector_QJ, 7, own=[set()] * len(vector_QJ))[0]: …

Unit vectors are in the same order by scalar product as by AF1's distance (IndexFlatL2). How they are searched:
``vector_index.py``. N rows, P pieces, Q queries, J joint dim.
"""

import dataclasses
import json
import shutil
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from megatron_af.config import Config, RetrievalConfig
from megatron_af.files import put_in_place, settled, write
from megatron_af.foreign import file_at, read_json
from megatron_af.retrieval.catalogue import Catalogue, held_out_sets
from megatron_af.retrieval.encoder import encoder_digest
from megatron_af.retrieval.vector_index import TooLittleMemory, VectorIndex, Vectors
from megatron_af.runs.digests import digest_files, digest_value, names_of
from megatron_af.runs.identity import dataset_digest

ABOUT = "index.json"
"""What an index was built of, and the digests of its other files."""
SPARE = 51
"""Neighbours asked for beyond those wanted: pieces of one recording often lie together (AF1: 51)."""


_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, RuntimeError, MemoryError
)  # fmt: skip
"""What numpy and faiss raise about files that are not what they wrote."""


class StaleIndex(RuntimeError):
    """There is no index, or not of this encoder and this data."""


class NeighbourIndex:
    """Pieces of sound of one data set, and the rows about each."""

    def __init__(self, catalogue: Catalogue, vectors: VectorIndex) -> None:
        self.catalogue = catalogue
        self._vectors = vectors
        self._by_piece_N = np.argsort(catalogue.piece_N, kind="stable")
        self._bounds = np.searchsorted(catalogue.piece_N[self._by_piece_N], np.arange(len(self) + 1))

    def __len__(self) -> int:
        return len(self.catalogue.key_P)

    @classmethod
    def make(
        cls,
        catalogue: Catalogue,
        vectors: Vectors,
        folder: Path,
        inputs: dict[str, str],
        settings: RetrievalConfig | None = None,
    ) -> "NeighbourIndex":
        """Index unit vectors, one per piece of the catalogue, in place of what is in ``folder``; it appears there whole
        or not at all."""
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        kind = VectorIndex.build(vectors, settings or RetrievalConfig(), partial).kind
        arrays = dataclasses.asdict(catalogue)
        left_out = arrays.pop("left_out")
        arrays |= {name: np.array(arrays[name], "S64") for name in ("key_P", "audio_P")}
        np.savez(partial / "catalogue.npz", **arrays)
        counts = {"rows": len(catalogue.row_N), "pieces": len(catalogue.key_P)}
        digests = digest_files(partial, names_of(partial))
        about = {"inputs": inputs, "kind": kind, "left_out": left_out, "files": digests, **counts}
        write(partial / ABOUT, json.dumps(about, indent=1) + "\n")
        put_in_place(partial, folder)
        return cls.read(folder)

    @classmethod
    def open(cls, config: Config, dataset: str) -> "NeighbourIndex":
        """The index that was built of this very encoder and data.

        Raises:
            StaleIndex: there is none, or something changed since; the message names it and the command to run.
        """
        if why := why_stale(config, dataset):
            raise StaleIndex(f"{why}; run tools/build_retrieval.py index")
        return cls.read(index_folder(config, dataset))

    @classmethod
    def read(cls, folder: Path) -> "NeighbourIndex":
        """What :meth:`make` wrote, whatever it was built of.

        Raises:
            StaleIndex: files of it are damaged, missing, or of another form.
            TooLittleMemory: it is whole, and does not fit.
        """
        about = read_json(folder / ABOUT)
        try:
            # faiss believes what a file says of itself: one damaged byte of a graph or a list could end the process.
            written = about["files"]
            held = digest_files(folder, [name for name in names_of(folder) if name != ABOUT])
            if other := sorted(name for name in written.keys() | held if written.get(name) != held.get(name)):
                raise ValueError(f"{other[0]} is not as it was written")
            with np.load(file_at(folder / "catalogue.npz")) as arrays:
                catalogue = Catalogue(
                    row_N=arrays["row_N"],
                    piece_N=arrays["piece_N"],
                    key_P=arrays["key_P"].astype("U64").tolist(),
                    audio_P=arrays["audio_P"].astype("U64").tolist(),
                    recording_P=arrays["recording_P"],
                    left_out=about["left_out"],
                )
            return cls(catalogue, VectorIndex.open(folder, about["kind"]))
        except TooLittleMemory:
            raise
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            raise StaleIndex(
                f"{folder}: expected an index as tools/build_retrieval.py index writes it ({reason}); build it anew"
            ) from error

    def vectors(self, piece_Q: NDArray[np.int64]) -> NDArray[np.float32]:
        """vector_QJ of pieces."""
        return self._vectors.vectors(piece_Q)

    def rows_of(self, piece: int) -> NDArray[np.int64]:
        """Numbers of the rows about a piece."""
        return self.catalogue.row_N[self._by_piece_N[self._bounds[piece] : self._bounds[piece + 1]]]

    def recordings_of(self, audio_digests: Collection[str]) -> set[int]:
        """Recordings that hold these bytes."""
        held = self._recordings_of_audio
        return {recording for digest in audio_digests for recording in held.get(digest, ())}

    @cached_property
    def _recordings_of_audio(self) -> dict[str, set[int]]:
        """By digest; asked for by every query, and so not looked for among all pieces each time."""
        held: dict[str, set[int]] = {}
        for digest, recording in zip(self.catalogue.audio_P, self.catalogue.recording_P.tolist(), strict=True):
            held.setdefault(digest, set()).add(recording)
        return held

    def nearest(
        self, vector_QJ: NDArray[np.float32], count: int, *, own: Sequence[Collection[int]]
    ) -> list[list[tuple[int, float]]]:
        """Up to ``count`` pieces of as many recordings for each query, the most similar first, with the similarity.

        Args:
            own: for each query, recordings that are no neighbours: its own.
        """
        found: list[list[tuple[int, float]]] = [[] for _ in vector_QJ]
        short, ask = np.arange(len(vector_QJ)), min(len(self), count + SPARE)
        while len(short):
            similarity_QC, piece_QC = self._vectors.search(vector_QJ[short], ask)
            for query, similarity_C, piece_C in zip(short.tolist(), similarity_QC, piece_QC, strict=True):
                found[query] = self._distinct(piece_C, similarity_C, count, own[query])
            if ask == len(self):
                break
            short = np.array([query for query in short.tolist() if len(found[query]) < count], np.int64)
            ask = min(len(self), 8 * ask)
        return found

    def _distinct(
        self, piece_C: NDArray[np.int64], similarity_C: NDArray[np.float32], count: int, own: Collection[int]
    ) -> list[tuple[int, float]]:
        chosen: list[tuple[int, float]] = []
        seen = set(own)
        for piece, similarity in zip(piece_C.tolist(), similarity_C.tolist(), strict=True):
            if piece < 0 or len(chosen) == count:  # faiss fills up with -1
                break
            recording = int(self.catalogue.recording_P[piece])
            if recording not in seen:
                seen.add(recording)
                chosen.append((piece, similarity))
        return chosen


def index_folder(config: Config, dataset: str) -> Path:
    return settled(Path(config.output) / config.name / "retrieval" / dataset)


def why_stale(config: Config, dataset: str) -> str:
    """Why the index of a data set must not be read; empty where it may. Raises ``FileNotFoundError``."""
    file = index_folder(config, dataset) / ABOUT
    if not file.is_file():
        return f"{dataset} has no index in {file.parent}"
    about = read_json(file)
    if not isinstance(about, dict) or not isinstance(about.get("inputs"), dict):
        return f"{file} does not say what the index of {dataset} was built of"
    built_of, now = about["inputs"], index_inputs(config, dataset)
    changed = sorted(name for name in built_of | now if built_of.get(name) != now.get(name))
    return f"the index of {dataset} was built before {', '.join(changed)} changed" if changed else ""


def index_inputs(config: Config, dataset: str) -> dict[str, str]:
    """What an index follows from: the encoder, how it is searched, the rows with their recordings, what is held out.

    Raises ``FileNotFoundError``, and ``ForeignError`` where ``retrieval.encoder`` is none.
    """
    how = [config.retrieval.index, config.retrieval.recall, config.retrieval.shard_clips]
    inputs = {
        "encoder": encoder_digest(config),
        "retrieval.index, recall or shard_clips": digest_value(how),
        f"data/{dataset}": dataset_digest(config, dataset),
    }
    for name in held_out_sets(config):
        if name in config.data.datasets:
            inputs[f"held out/{name}"] = dataset_digest(config, name)
    return inputs
