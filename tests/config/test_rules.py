"""What the checks let through can be built: sizes and layouts drawn at random, on the meta device, on the first and
the last rank."""

from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import torch
import torch.distributed as dist
from hypothesis import strategies as st
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_af.config import (
    CheckpointConfig,
    Config,
    DatasetConfig,
    ParallelConfig,
    RegistryConfig,
    SpikesConfig,
    StepConfig,
    TrackingConfig,
)
from megatron_af.config.rules import name_rules
from megatron_af.model import AudioFront, Vocabulary, build
from megatron_af.parallel.device import Device, make_megatron_portable
from megatron_af.runs.check import check
from tests import tiny
from tests.distributed import run_distributed

META = Device(torch.device("meta"))
SIZES: dict[str, dict[str, list[Any]]] = {
    "lm": {
        "hidden": [36, 40, 48, 128],
        "layers": [1, 2, 6, 8],
        "heads": [1, 2, 8, 16],
        "kv_heads": [1, 4],
        "ffn": [1, 6, 100],
        "vocab": [1, 91],
        "tied": [False],
    },
    "encoder": {
        "embed_dim": [1, 2, 6, 8, 10],
        "depths": [(), (1,), (2, 1, 1), (3, 2)],
        "heads": [(1,), (1, 2), (1, 2, 4)],
        "patch_size": [8, 24, 32, 64, 256],
        "window_size": [1, 3, 4, 16, 17],
        "mlp_ratio": [1],
        "fusion": [True],
        "classes": [3],
        "vector": ["mlp", "residual"],
        "vector_dim": [1, 6],
        "absolute_positions": [True],
    },
    "transform": {"layers": [0, 2], "heads": [1, 3, 8, 16, 32], "ffn": [1], "positions": ["sinusoidal"]},
    "cross_attention": {"interval": [2, 3, 4, 5], "heads": [1, 2], "head_dim": [1, 3], "ffn_multiplier": [1]},
    "front_end": {
        "window_seconds": [1e-6, 0.01, 7.0, 11.0],
        "overlap_seconds": [5.0, 10.0],
        "hop_samples": [80, 320],
        "fft_size": [1, 2],
        "max_hz": [50.0, 9000.0],
    },
}
"""Every number lies in its range: what is left to find are sizes that do not go together."""
LAYOUTS: dict[str, list[Any]] = {
    "tensor": [2, 4],
    "pipeline": [2, 4],
    "virtual_pipeline": [2],
    "sequence": [True],
}


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """The tiny model with some of its sizes and of its layout changed."""
    config = tiny.config()
    keys = [(section, key) for section, keys in SIZES.items() for key in keys]
    model = config.model
    for section, key in draw(st.lists(st.sampled_from(keys), max_size=3, unique=True)):
        changed = replace(getattr(model, section), **{key: draw(st.sampled_from(SIZES[section][key]))})
        model = replace(model, **{section: changed})
    chosen = draw(st.sets(st.sampled_from(list(LAYOUTS)), max_size=3))
    layout = {key: draw(st.sampled_from(LAYOUTS[key])) for key in sorted(chosen)}
    datasets = {name: DatasetConfig(manifest=f"{name}.jsonl") for name in ("a", "b")}
    stage = replace(config.curriculum["stage"], max_text_tokens=64, micro_batch_samples=1)
    return replace(
        config,
        model=model,
        parallel=ParallelConfig(**layout),
        data=replace(config.data, datasets=datasets),
        curriculum={"stage": stage},
    )


def build_on_both_ends(config: Config) -> None:
    world = config.parallel.tensor * config.parallel.pipeline
    for rank in {0, world - 1}:
        dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        parallel = config.parallel
        parallel_state.initialize_model_parallel(
            parallel.tensor,
            parallel.pipeline,
            parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
            create_gloo_process_groups=False,
        )
        try:
            with torch.device("meta"), torch.no_grad():
                front = build(config, words_of(config), META).front
                assert isinstance(front, AudioFront)
                if rank == 0:
                    # Folding the mel takes any number of frames and most of the time.
                    front.encoder.fold = lambda mel_WFM: torch.zeros(2, 1, 256, 256)  # type: ignore[method-assign]
                    features_WLD = front.encode(torch.zeros(2, config.model.front_end.window_frames, 64))
                    encoder = config.model.encoder
                    assert features_WLD.shape == (2, encoder.tokens_per_window, encoder.feature_dim)
                    assert front.transform(features_WLD, None).shape == features_WLD.shape
        finally:
            parallel_state.destroy_model_parallel()


def words_of(config: Config) -> Vocabulary:
    """As many as the table has rows for; data.tokenizer's own are compared with it where it is read."""
    return replace(tiny.VOCABULARY, first_added_id=min(tiny.VOCABULARY.first_added_id, config.model.lm.vocab))


def search(rank: int, world_size: int) -> int:
    make_megatron_portable(target="meta")
    built = set()

    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None, report_multiple_bugs=False)
    @hypothesis.given(configs())
    def what_is_accepted_can_be_built(config: Config) -> None:
        world = config.parallel.tensor * config.parallel.pipeline
        if not check(config, max(1, world)):
            build_on_both_ends(config)
            built.add(repr(config))

    what_is_accepted_can_be_built()
    return len(built)


@pytest.mark.slow
def test_what_is_accepted_can_be_built() -> None:
    (built,) = run_distributed(search, 1, timeout=150)
    assert built >= 30


@pytest.mark.parametrize("name", ["Stage 1", "étape", "a/b", "..", "-x", "", "a" * 64, "it's"])
@pytest.mark.parametrize("place", ["name", "stage", "step", "data set"])
def test_names_that_are_refused_later_are_refused_now(place: str, name: str) -> None:
    config = tiny.config()
    stage = config.curriculum["stage"]
    bad = {
        "name": replace(config, name=name),
        "stage": replace(config, curriculum={name: stage}),
        "step": replace(config, steps={name: StepConfig()}),
        "data set": replace(config, data=replace(config.data, datasets={name: DatasetConfig(manifest="x")})),
    }[place]
    (problem,) = [problem for problem in name_rules(bad) if repr(name).strip("'\"") in problem]
    assert "write 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-'" in problem


def test_usual_names_pass_and_the_registrys_rules_are_asked() -> None:
    config = replace(tiny.config(), name="AF2_3b-v1.5", registry=RegistryConfig(model="Audio Flamingo 2 (ours)"))
    assert list(name_rules(config)) == []
    for model, refused in {"org/af2": "/", "af2:3b": ":", "it's": "'"}.items():
        (problem,) = name_rules(replace(config, registry=RegistryConfig(model=model)))
        assert problem == f"registry.model = '{model}': MLflow's registry takes no {refused} in a name; leave it out"
    long = replace(config, tracking=TrackingConfig(experiment="e" * 501))
    assert list(name_rules(long)) == ["tracking.experiment: MLflow takes 500 characters at most; shorten it"]


def test_no_stage_hears_views():
    config = tiny.config()
    views = replace(config.model.front_end, long_clips="views")
    problems = check(replace(config, model=replace(config.model, front_end=views)), 1)
    assert any("model.front_end.long_clips = views; set it to windows" in problem for problem in problems)
    assert not any("long_clips" in problem for problem in check(config, 1))


def test_a_spike_has_a_checkpoint_to_go_back_to() -> None:
    """Else all that was learnt before it would be left out, and the rest trained from the entry weights."""
    config = tiny.config()
    stage = replace(config.curriculum["stage"], spikes=SpikesConfig(deviations=8.0))
    config = replace(config, curriculum={"stage": stage})
    assert sum("spikes.deviations = 8: a spike sends the run back" in problem for problem in check(config, 1)) == 1
    config = replace(config, checkpoint=CheckpointConfig(every_steps=100))
    assert not any("spikes" in problem for problem in check(config, 1))
