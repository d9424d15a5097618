"""Indexes built on several ranks: only what is new is embedded, nothing old is read, and training takes the result."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_af.config import Config, ConfigError, NeighboursConfig
from megatron_af.config.loading import load_config
from megatron_af.data.rows import Manifest
from megatron_af.data.storage import DataRoot
from megatron_af.inference import embedder
from megatron_af.retrieval.build import Builder
from megatron_af.retrieval.retriever import Retriever
from megatron_af.runs.check import check
from megatron_af.runs.lock import StageBusy
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.trainer import Trainer
from tests.contrastive_run import write_run
from tests.data.toy import open_stream, write_manifest, write_tone
from tests.distributed import run_distributed
from tests.retrieval.toy import StubEmbedder, retrieval_config, write_checkpoint, write_rows
from tests.told import Told

pytestmark = pytest.mark.slow


def _with_stub(rank: int, world_size: int, config: Config, steps: Callable[[Config], object]) -> object:
    embedder.ClapEmbedder = StubEmbedder  # type: ignore[misc, assignment]  # in this forked process alone
    return steps(config)


def interleave(config: Config) -> tuple[int, list[str]]:
    """Clips that were embedded, and what was said."""
    told = Told()
    StubEmbedder.heard = 0
    with Builder(config, told) as builder:
        builder.interleave("knn")
    return StubEmbedder.heard, told.lines


def _changes(config: Config) -> list[tuple[int, list[str]]]:
    root = Path(config.data.root)
    write_checkpoint(config, "a")
    outcomes = [interleave(config), interleave(config)]
    write_manifest(root, "train", write_rows(root, "train", 28))
    outcomes.append(interleave(config))
    write_checkpoint(config, "b")
    outcomes.append(interleave(config))
    return outcomes


def test_only_what_is_new_is_embedded(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path)
    (outcomes,) = run_distributed(_with_stub, 1, config, _changes)
    assert [heard for heard, _ in outcomes] == [24, 0, 4, 28]
    first, again, longer, _ = (said for _, said in outcomes)
    assert first == [
        "embed train 24/24 100.0% | eta 0:00",
        "train: 24 clips of 24 rows indexed",
        f"interleave knn 1/24 {1 / 24:.1%} | eta –",
        "interleave knn 24/24 100.0% | eta 0:00",
        f"knn: 24 rows with 3 examples each in {config.data.root}/knn.jsonl",
    ]
    assert again[0] == "train: the index is up to date, 24 clips"
    assert longer[1] == "train: 28 clips of 28 rows indexed"
    assert len(Manifest(tmp_path / "data/knn.jsonl")) == 28
    assert '"too few neighbours": 0' in (tmp_path / "data/knn.jsonl.report").read_text()
    stores = list((tmp_path / "runs/toy/retrieval").glob("*.vectors"))
    assert len(stores) == 1, "the old encoder's vectors are gone"


def _replaced_recording(config: Config) -> list[int]:
    write_checkpoint(config, "a")
    heard = [interleave(config)[0]]
    write_tone(Path(config.data.root) / "train/1.wav", 2.0, 12345)
    return [*heard, interleave(config)[0], interleave(config)[0]]


def test_a_recording_that_was_replaced_under_its_name_is_embedded_again(tmp_path: Path) -> None:
    (heard,) = run_distributed(_with_stub, 1, retrieval_config(tmp_path), _replaced_recording)
    assert heard == [24, 1, 0]


def _two_at_once(config: Config) -> str:
    write_checkpoint(config, "a")
    with Builder(config, Told()) as builder:
        with pytest.raises(StageBusy) as busy, Builder(config, Told()):
            pass
        builder.index("train")
    assert interleave(config)[0] == 0, "nobody is at it any more"
    return str(busy.value)


def test_one_process_builds_at_a_time(tmp_path: Path) -> None:
    (busy,) = run_distributed(_with_stub, 1, retrieval_config(tmp_path), _two_at_once)
    assert "/toy/retrieval is being written by process" in busy


def _written(config: Config) -> list[str]:
    write_checkpoint(config, "a")
    at_once, names = DataRoot.write, list[str]()
    (Path(config.data.root) / ".knn.jsonl.killed.draft").write_text("half")

    def told(root: DataRoot, path: str, data: bytes) -> None:
        names.append(path)
        at_once(root, path, data)

    DataRoot.write = told  # type: ignore[method-assign]  # in this forked process alone
    interleave(config)
    return names


def test_rows_are_written_as_they_are_made(tmp_path: Path) -> None:
    """Not held in memory: a million of them have gigabytes. What a killed process had written goes."""
    (names,) = run_distributed(_with_stub, 1, retrieval_config(tmp_path), _written)
    assert names == ["knn.jsonl.report"] and len(Manifest(tmp_path / "data/knn.jsonl")) == 24
    assert not list((tmp_path / "data").glob(".*"))


def _mistakes(config: Config) -> list[str]:
    found = []
    write_checkpoint(config, "a")
    many = replace(config.data.datasets["knn"], neighbours=NeighboursConfig(of="train", examples=40))
    other = replace(config, data=replace(config.data, datasets={**config.data.datasets, "knn": many}))
    for wrong in (other, replace(config, retrieval=replace(config.retrieval, stage=""))):
        with pytest.raises(ConfigError) as error:
            interleave(wrong)
        found.append(str(error.value))
    return found


def test_mistakes_are_named(tmp_path: Path) -> None:
    (found,) = run_distributed(_with_stub, 1, retrieval_config(tmp_path), _mistakes)
    assert "neighbours.examples = 40: train has 18 recordings; lower it" in found[0]
    assert "neither retrieval.stage nor retrieval.encoder is set" in found[1]


def test_the_configuration_is_checked(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path)
    datasets = config.data.datasets
    wrong = {
        "a": replace(datasets["knn"], neighbours=NeighboursConfig(of="test")),
        "b": replace(datasets["knn"], neighbours=NeighboursConfig(of="knn", examples=0)),
        "c": replace(datasets["knn"], neighbours=NeighboursConfig(of="trian"), manifest="prepared/c"),
        "d": replace(datasets["knn"], neighbours=NeighboursConfig(of="train", examples=2, names=("x", "y", "x"))),
    }
    problems = check(
        replace(
            config,
            stage="tune",
            data=replace(config.data, datasets={**datasets, **wrong}),
            retrieval=replace(config.retrieval, stage="tune"),
        ),
        1,
    )
    expected = [
        "retrieval.stage = 'tune': no contrastive stage of curriculum; known: clap",
        "data.datasets.a.neighbours.of = test: curriculum.clap is evaluated on it; name a training split",
        "data.datasets.b.neighbours.of = knn: is itself made of neighbours; name what it is made of",
        "data.datasets.c.neighbours.of = trian: not in data.datasets; did you mean train?",
        "data.datasets.b.neighbours.examples = 0: must be at least 1",
        "data.datasets.c.manifest = prepared/c: neighbours are written as JSONL; end it so",
        "data.datasets.d.neighbours.names: a row of 2 examples can have 3 different answers; got 2 different names",
    ]
    both = replace(config, retrieval=replace(config.retrieval, encoder="models/clap"))
    assert [p for p in check(both, 1) if "retrieval" in p] == [
        "retrieval.stage = 'clap' and retrieval.encoder = 'models/clap': only one can say what sounds alike; leave one "
        "empty"
    ]
    alone = replace(config, retrieval=replace(config.retrieval, stage="", encoder="models/clap"))
    assert not [p for p in check(alone, 1) if "retrieval" in p]
    assert sorted(problem for problem in problems if "neighbours" in problem or "retrieval" in problem) == sorted(
        expected
    )


def test_interleaved_rows_become_training_batches(tmp_path: Path) -> None:
    config = replace(retrieval_config(tmp_path), stage="tune")
    run_distributed(_with_stub, 1, config, _changes)
    stream = open_stream(config)
    batch = stream.batch(0)
    stream.close()
    assert not (tmp_path / "runs/toy/tune/replaced.jsonl").exists()
    tokenizer = Tokenizer.load(config.data.tokenizer)
    by_id = {row.id: row for row in Manifest(tmp_path / "data/knn.jsonl")}
    ids_BS, labels_BS = (
        torch.cat([getattr(rows, name) for rows in batch.text.rows]) for name in ("ids_BS", "labels_BS")
    )
    last_audio_BS = torch.cat([rows.last_audio_BS for rows in batch.text.rows])
    clips = [clips for rows in batch.text.rows for clips in rows.clips]
    assert batch.audio.mel_WFM is not None and len(batch.audio.mel_WFM) == len(batch.audio.clip_windows)
    for b, name in enumerate(batch.sample_ids):
        row = by_id[name]
        text = tokenizer.decode([t for t in ids_BS[b].tolist() if t != tokenizer.pad_id], skip_special=False)
        assert text.startswith("Here are similar examples. <audio>") and text.count("<audio>") == 4
        learnt = tokenizer.decode([t for t in labels_BS[b].tolist() if t >= 0], skip_special=False)
        assert [learnt.count(f"{question.output}<|endofchunk|>") for question in row.questions] == [1] * 4, (
            "all answers are learnt"
        )
        assert len(clips[b]) == 4
        answers = [int(last_audio_BS[b, s]) for s in range(ids_BS.shape[1]) if ids_BS[b, s] == tokenizer.separator_id]
        assert answers == [0, 1, 2, 3], "each answer hears the audio up to its own"


def _real(rank: int, world_size: int, file: Path) -> list[str]:
    config = load_config(file, ["curriculum.clap.steps=1"])
    neighbours = replace(
        config.data.datasets["c"], manifest="knn.jsonl", neighbours=NeighboursConfig(of="c", examples=2)
    )
    datasets = {**config.data.datasets, "knn": neighbours}
    config = replace(
        config, data=replace(config.data, datasets=datasets), retrieval=replace(config.retrieval, stage="clap")
    )
    if not (file.parent / "runs").exists():
        with Trainer(replace(config, stage="clap")) as trainer:
            trainer.train()
    told = Told()
    with Builder(config, told) as builder:
        builder.interleave("knn")
    dist.barrier()  # rank 0 may still write
    retriever = Retriever(config, "c")
    clip = Manifest(Path(config.data.root) / "c.jsonl")[3].clips[0]
    ((found,),) = retriever.nearest([Path(config.data.root) / clip.path], 1)
    retriever.close()
    assert (found.clip, found.similarity) == (clip, pytest.approx(1.0, abs=1e-4))
    return told.lines


def test_a_trained_encoder_on_two_ranks(tmp_path: Path) -> None:
    first, second = run_distributed(_real, 2, write_run(tmp_path))
    assert second == [], "one rank talks"
    assert first[-1].startswith("knn: ")
    assert all(len(row.clips) == 3 for row in Manifest(tmp_path / "data/knn.jsonl"))
