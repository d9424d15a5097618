"""The comparison with and without rows behind neighbours: what is held out, its numbers, and one run of tiny size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_af.bench import few_shot_claim as module
from megatron_af.bench.few_shot_claim import (
    PROMPT,
    SHOTS,
    UNSEEN,
    VARIANTS,
    claim_rows,
    held_out,
    run_claim,
    summarise,
    told_rows,
)
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.data.rows import Clip, Manifest, Row
from megatron_af.progress import silent
from megatron_af.runs.check import check

CONFIG = CONFIGS / "few_shot_claim.yaml"


def scene(number: int, kind: str) -> Row:
    return Row(
        id=str(number),
        clips=(Clip(path=f"{number}.flac", duration=3.0),),
        captions=(f"loud {kind}",),
        negatives=("quiet bell",),
        meta={"events": [{"kind": kind}]},
    )


def test_rows_ask_what_a_sound_is_and_are_of_their_kinds_alone() -> None:
    rows = [scene(n, kind) for n, kind in enumerate(("bell", "dog", "bell", "rain"))]
    (dog,) = claim_rows(rows, frozenset({"dog"}))
    assert [(q.prompt, q.output) for q in dog.questions] == [(PROMPT, "dog")]
    assert dog.captions == ("dog",) and not dog.negatives, "no caption tells of a kind that is held out"
    assert [row.id for row in claim_rows(rows, frozenset({"bell", "rain"}))] == ["0", "2", "3"]


def test_conversations_ask_again_for_what_they_said() -> None:
    vocabulary = ["bell", "dog", "rain", "wind", "alpha", "bravo", "charlie", "delta", "echo"]
    rows = told_rows(vocabulary, 60, seed=3)
    assert rows == told_rows(vocabulary, 60, seed=3) != told_rows(vocabulary, 60, seed=4)
    assert len({row.id for row in rows}) == 60
    for row in rows:
        assert row.template == "dialogue" and not row.clips and 3 <= len(row.questions) <= 9
        called = {q.prompt: q.output for q in row.questions}
        assert all(called[q.prompt] == q.output for q in row.questions) and len(set(called.values())) == len(called)
        assert not set(called) & set(called.values())
    assert {q.output for row in rows for q in row.questions} == set(vocabulary), "any word can be an answer"


def test_each_seed_holds_out_others() -> None:
    kinds = [f"kind {n}" for n in range(14)]
    assert all(len(set(held_out(kinds, seed))) == UNSEEN for seed in range(3))
    assert held_out(kinds, 0) == held_out(kinds[::-1], 0) != held_out(kinds, 1)


def test_the_variants_differ_in_what_they_read_alone() -> None:
    config = load_config(CONFIG, ["data.tokenizer=x"])
    assert check(config, config.launch.processes_per_node) == []
    one, other = (config.curriculum[variant] for variant in VARIANTS)
    assert set(one.blend) - set(other.blend) == {"named_2", "named_5", "named_8"}
    assert replace(one, blend=other.blend) == other
    kinds = {"bass", "bells", "choir", "cymbal", "flute", "footsteps", "guitar", "kick", "organ", "piano"}
    for name in set(one.blend) - set(other.blend):
        made = config.data.datasets[name].neighbours
        assert made and made.of == "seen" and len(made.names) == 26 and not kinds & set(made.names)
    assert max(SHOTS) == 8 and config.retrieval.datasets == ("shown",)


def test_gains_are_paired_by_recording() -> None:
    none = {f"{n}": n < 2 for n in range(10)}
    more = {f"{n}": n < 6 for n in range(10)}
    by_shots: dict[int, dict[str, bool]] = {shots: more if shots else none for shots in SHOTS}
    result = summarise({"with_neighbours": by_shots, "single_rows": dict.fromkeys(SHOTS, none)})
    assert result["questions"] == 10
    eight = result["variants"]["with_neighbours"]["8"]
    gain, low, high = eight["gain"]
    assert eight["right"] == pytest.approx(60) and gain == pytest.approx(40)
    assert 0 < low < 40 < high < 80
    assert result["variants"]["single_rows"]["8"]["gain"] == [0, 0, 0]
    console = Console(width=140, record=True, file=None)
    with console.capture() as captured:
        console.print(*module.tables(result | {"unseen": [["bell"]]}))
    assert "60.0% (+40.0" in captured.get()


TINY = {
    "scenes.offline": "true", "scenes.variants": 1, "scenes.texts": 60,
    "scenes.sets.train.scenes": 130, "scenes.sets.test.scenes": 40,
    "model.encoder.embed_dim": 16, "model.encoder.depths": "[1]", "model.encoder.heads": "[2]",
    "model.encoder.vector_dim": 32, "model.clap.joint_dim": 32, "model.transform.layers": 1,
    "model.transform.heads": 2, "model.lm.hidden": 64, "model.lm.layers": 2, "model.lm.ffn": 128,
    "launch.processes_per_node": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_comparison_runs_and_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSEEN", 3)
    stages = ("lm", "clap", "pretrain", *VARIANTS)
    sizes = ("steps=2", "global_batch_samples=2", "micro_batch_samples=2", "optimizer.warmup_steps=1")
    small = [f"curriculum.{stage}.{size}" for stage in stages for size in sizes]
    overrides = [*(f"{key}={value}" for key, value in TINY.items()), *small,
                 f"output={tmp_path / 'runs'}", f"data.root={tmp_path / 'data'}"]  # fmt: skip
    result = run_claim(CONFIG, overrides, progress=silent(), seeds=1)
    (unseen,) = result["unseen"]
    root = Path(f"{tmp_path / 'data'}_0")
    kinds: dict[str, set[Any]] = {
        name: {row.questions[-1].output for row in Manifest(root / f"{name}.jsonl")}
        for name in ("seen", "named_2", "named_5", "named_8", "shown", "asked")
    }
    assert kinds["shown"] == kinds["asked"] == set(unseen)
    assert not kinds["seen"] & set(unseen)
    assert all(kinds[name] and not kinds[name] & (kinds["seen"] | set(unseen)) for name in kinds if "named" in name)
    assert set(result["variants"]) == set(VARIANTS)
    assert all(list(by_shots) == [str(shots) for shots in SHOTS] for by_shots in result["variants"].values())
    assert run_claim(CONFIG, overrides, progress=silent(), seeds=1) == result
