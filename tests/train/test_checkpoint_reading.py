"""A checkpoint loads in every layout, and into no other model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_af.config.loading import to_yaml
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import gather_global
from megatron_af.runs.paths import Resume, latest
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.checkpoint_reading import load_parts
from megatron_af.train.objectives.answer import Answer
from tests import tiny
from tests.distributed import RankError, run_distributed
from tests.train.saved_run import LAYOUTS, SAVED_AT, run

pytestmark = pytest.mark.slow



@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("one", "TP2xPP2+SP"),
        ("TP2xPP2+SP", "one"),
        ("DP2", "DP2+ZeRO-1"),
        ("DP2+ZeRO-1", "TP2"),
        ("PP2xVPP2", "PP2xDP2+ZeRO-1"),
        ("PP2xDP2+ZeRO-1", "PP2xVPP2"),
        ("TP2", "PP2"),
        ("PP3, unevenly cut", "TP2"),
        ("DP2", "PP3, unevenly cut"),
    ],
)
def test_checkpoint_of_any_layout_loads_in_any_other(written: str, read: str, tmp_path: Path) -> None:
    world_size, parallel = LAYOUTS[written]
    through = run_distributed(run, world_size, parallel, str(tmp_path), steps=SAVED_AT + 3, resume=False, timeout=180)[
        0
    ]
    world_size, parallel = LAYOUTS[read]
    resumed = run_distributed(run, world_size, parallel, str(tmp_path), steps=3, resume=True, timeout=180)[0]
    assert resumed == pytest.approx(through[2 * SAVED_AT :], rel=5e-6)


@pytest.mark.parametrize(("written", "read"), [("TP2xPP2+SP", "DP2+ZeRO-1"), ("DP2+ZeRO-1", "TP2xPP2+SP")])
def test_learnt_positions_load_in_any_layout(written: str, read: str, tmp_path: Path) -> None:
    """And train in any: their table is cut by no layout, and looked up in parts under sequence parallelism."""
    arguments: dict[str, Any] = {"trainable": tiny.ALL, "lm": {"family": "opt", "kv_heads": 4}, "timeout": 180}
    world_size, parallel = LAYOUTS[written]
    through = run_distributed(run, world_size, parallel, str(tmp_path), steps=6, resume=False, **arguments)[0]
    world_size, parallel = LAYOUTS[read]
    resumed = run_distributed(run, world_size, parallel, str(tmp_path), steps=3, resume=True, **arguments)[0]
    assert resumed == pytest.approx(through[2 * SAVED_AT :], rel=5e-6)


@pytest.mark.parametrize(("written", "read"), [("TP2xPP2+SP", "DP2+ZeRO-1"), ("PP2xDP2+ZeRO-1", "TP2xPP2+SP")])
def test_adapters_load_in_any_layout(written: str, read: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"trainable": tiny.ADAPTERS, "lora": tiny.LORA, "timeout": 180}
    world_size, parallel = LAYOUTS[written]
    through = run_distributed(run, world_size, parallel, str(tmp_path), steps=6, resume=False, **arguments)[0]
    world_size, parallel = LAYOUTS[read]
    resumed = run_distributed(run, world_size, parallel, str(tmp_path), steps=3, resume=True, **arguments)[0]
    assert resumed == pytest.approx(through[2 * SAVED_AT :], rel=1e-5)


OPT = {"family": "opt", "kv_heads": 4}
OTHER_MODELS = {
    "its family's norms have biases": ({}, OPT, r"it has no lm\.decoder\.final_layernorm\.bias, .* \(and \d+ more\)"),
    "its family's keys have heads": (OPT, {}, r"linear_qkv\.bias has shape \(192,\), expected \(128,\)"),
    "it has learnt more places": (OPT, OPT | {"max_positions": 64}, r"\.weight has shape \(130, 64\)"),
}


@pytest.mark.parametrize(("written", "read", "message"), OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_a_checkpoint_of_another_model_is_one_message(
    written: dict[str, Any], read: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run_distributed(run, 1, {}, str(tmp_path), steps=SAVED_AT, resume=False, lm=written)
    with pytest.raises(RankError, match=r"does not fit the model: .*" + message) as raised:
        run_distributed(run, 1, {}, str(tmp_path), steps=1, resume=True, lm=read)
    assert "its own stands in config.yaml beside it" in str(raised.value)


def grow(rank: int, world_size: int, tied: bool, folder: str) -> dict[str, torch.Tensor]:
    """Save a model of 90 words, load it into one of 300: the tables of both, of this rank, and a fresh one."""
    run = tiny.config(tied=tied, tensor=world_size)
    lm = dataclasses.replace(run.model.lm, vocab=300)
    more = dataclasses.replace(run, model=dataclasses.replace(run.model, lm=lm))
    groups = process_groups.initialize(run.parallel, run.seed)
    small = build(run, tiny.VOCABULARY, current_device())
    tiny.fill(small)
    at = Path(folder) / "checkpoints"
    resume = Resume(stage="stage", step=1, skipped=0, samples=1, world_size=world_size)
    Checkpoints(at, keep=1).save(small, None, groups, resume, {}, Answer.parts, to_yaml(run))
    words = Vocabulary(first_added_id=300, num_added=4)
    large = build(more, words, current_device(), drawn=lambda name: False)  # as training builds what it loads

    name = "lm.embedding.word_embeddings.weight" if tied else "lm.output_layer.weight"

    def table(model: Any) -> torch.Tensor:
        return gather_global(model.chunks, model.front).get(name, torch.empty(0))  # of the first rank

    before, newest = table(build(more, words, current_device())), latest(at)
    assert newest is not None
    load_parts(large, groups, newest, ["lm"])
    found = {"small": table(small), "fresh": before, "large": table(large)}
    process_groups.destroy()
    return found


@pytest.mark.parametrize(("ranks", "tied"), [(1, True), (2, True), (1, False)], ids=["tied", "TP2", "untied"])
def test_new_words_have_fresh_rows_and_old_ones_theirs(ranks: int, tied: bool, tmp_path: Path) -> None:
    found = run_distributed(grow, ranks, tied, str(tmp_path))[0]
    assert found["small"].shape[0] == 90 and found["large"].shape[0] == 300
    torch.testing.assert_close(found["large"][:90], found["small"], rtol=0, atol=0)
    torch.testing.assert_close(found["large"][90:], found["fresh"][90:], rtol=0, atol=0)
    assert found["large"][90:].abs().min(1).values.max() > 0 and found["large"][90:].std() > 0.01
