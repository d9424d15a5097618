"""Each tensor of a model is in the state once, and what one rank refuses all raise."""

from pathlib import Path

import pytest

from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.paths import CheckpointError, Resume
from megatron_af.train.checkpoint_state import local_name, model_state, on_first, updates
from megatron_af.train.trainable import part_of
from tests import tiny
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def held(rank: int, world_size: int) -> list[dict[str, set[str]]]:
    """Names in the state and among its weights: of all, and of the transformation layers alone."""
    config = tiny.config()
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    found = []
    for keep in (lambda name: True, lambda name: part_of(name) == "transform"):
        state, weights = model_state(model, groups, keep)
        found += [
            {key: {local_name(name) for name in entries} for key, entries in of.items()} for of in (state, weights)
        ]
    own = {f"model{i}": {name for name, _ in chunk.named_parameters()} for i, chunk in enumerate(model.chunks)}
    process_groups.destroy()
    return [*found, own, {"front": {name for name, _ in model.front.named_parameters()}}]


def test_a_state_holds_what_is_kept() -> None:
    ((state, weights, some, some_weights, decoder, front),) = run_distributed(held, 1)
    assert state.keys() == {"front", "model0"} and weights["front"] == front["front"] < state["front"], "and buffers"
    assert weights["model0"] == decoder["model0"], "tied tables once"
    assert some.keys() == {"front"} and {part_of(f"{name}") for name in some["front"]} == {"transform"}
    assert some["front"] < state["front"] and some_weights["model0"] == set()


def refuse(rank: int, world_size: int, folder: Path) -> str:
    def action() -> None:
        (folder / f"ran_{rank}").touch()
        raise OSError(28, "No space left on device", str(folder))

    with pytest.raises(CheckpointError) as raised:
        on_first(action)
    return str(raised.value)


def test_what_the_first_rank_refuses_all_raise(tmp_path: Path) -> None:
    first, second = run_distributed(refuse, 2, tmp_path)
    assert first == second and "No space left" in first
    assert [file.name for file in tmp_path.iterdir()] == ["ran_0"]


def test_steps_that_were_skipped_made_no_update() -> None:
    assert updates(Resume(stage="s", step=7, skipped=2, samples=1, world_size=1)) == 5
