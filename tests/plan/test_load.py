"""A step that is planned has the shapes of one that is made."""

import dataclasses

import pytest

from megatron_af.config.loading import load_config
from megatron_af.plan.load import Cut, Sample, draw_steps, load_of, made_of, mean
from tests import tiny
from tests.plan import packed_rows


def test_a_planned_step_is_the_one_that_training_makes() -> None:
    config = tiny.config()
    batch = tiny.step_batch(0, dp_rank=0, dp_size=1, mp_rank=0, mp_size=1)
    real = load_of(batch.audio, batch.text, config.model.encoder.tokens_per_window)
    # one clip serves two samples of that batch, so it is left out of the second one here
    heard = [(1,), (2,), (), (1, 1), (3,), (), (), (1,)]
    samples = [
        Sample(windows=windows, tokens=14 + place, segments=2) for place, windows in enumerate(heard)
    ]
    planned = made_of(samples, Cut.of(config, config.curriculum["stage"]))
    same = "micro_batches rows length keys windows own_windows clip_tokens clip_scores text_stretches tokens"
    for name in same.split():
        assert getattr(planned, name) == getattr(real, name), name
    assert planned.text_scores == pytest.approx(real.text_scores, rel=0.01), "two questions differ by a token at most"


def test_packing_makes_fewer_rows() -> None:
    config = tiny.config()
    stage = dataclasses.replace(config.curriculum["stage"], pack_tokens=96)
    samples = [Sample(windows=(1,), tokens=24)] * 16
    loose, packed = (made_of(samples, Cut.of(config, s)) for s in (config.curriculum["stage"], stage))
    assert loose.micro_batches == 8 and packed.micro_batches == 2
    assert packed.length == 96 and packed.text_stretches and not loose.text_stretches
    assert packed.text_scores == 8 * 24**2, "each sample sees itself alone"
    assert packed.audio_scores == 8 * 24 * config.model.encoder.tokens_per_window
    assert loose.text_scores == 2 * loose.length**2


def test_packed_rows_look_at_what_training_counts() -> None:
    config = load_config("configs/af2_3b.yaml", ["stage=pretrain"])
    windows = (1, 2, 3, 1)
    batch = packed_rows.batch(windows, 0)
    real = load_of(batch.audio, batch.text, config.model.encoder.tokens_per_window)
    each = packed_rows.LENGTH // packed_rows.SAMPLES
    samples = [
        Sample(windows=(windows[i % 4],), tokens=each, supervised=packed_rows.SUPERVISED / each)
        for i in range(packed_rows.ROWS * packed_rows.SAMPLES)
    ]
    planned = made_of(samples, Cut.of(config, config.curriculum["pretrain"]))
    same = "micro_batches rows length mean_keys mean_supervised text_scores audio_scores tokens"
    for name in same.split():
        assert getattr(planned, name) == getattr(real, name), name


def test_ranks_of_a_copy_share_the_windows() -> None:
    config = tiny.config(tensor=2)
    load = made_of([Sample(windows=(3,), tokens=14)] * 4, Cut.of(config, config.curriculum["stage"]))
    assert load.windows == 12 and load.own_windows == 6


def test_steps_are_drawn_the_same_again() -> None:
    config = tiny.config()
    samples = [Sample(windows=(n,), tokens=10 * n) for n in (1, 2, 3)]
    one, other = (
        list(draw_steps(Cut.of(config, config.curriculum["stage"]), samples, per_rank=8, count=4)) for _ in range(2)
    )
    assert one == other and len({load.windows for load in one}) > 1
    assert min(load.windows for load in one) <= mean(one).windows <= max(load.windows for load in one)
