"""What is kept follows from who trains below and above; how much, tests/plan/test_memory.py measures."""

import dataclasses

import pytest

from megatron_af.flops import Amounts
from megatron_af.plan.activations import How, Kept, keep_encoder, keep_layer, keep_transform
from tests import tiny

TEXT = Amounts(text=10, keys=7)
MODEL = tiny.config().model


def kept_of(
    trains: tuple[str, ...], *, x: bool = True, how: How | None = None, tensor: int = 1, sequence: bool = False
) -> float:
    kept = Kept(2, tensor, sequence)
    stage = tiny.config(trains).curriculum["stage"]
    keep_layer(kept, MODEL, stage.trains, 0, x, False, how or How())
    return kept.of(TEXT)


def test_nothing_is_kept_where_nothing_learns_and_nothing_below_does() -> None:
    assert kept_of(("transform.*",), x=False) == 0
    assert kept_of(("transform.*",), x=True) > 0
    stage = tiny.config(("lm.*",)).curriculum["stage"]
    side = Kept(2)
    assert not keep_encoder(side, MODEL.encoder, stage.trains, 64, How())
    assert not keep_transform(side, MODEL.transform, stage.trains, MODEL.encoder.feature_dim, False)
    assert side.of(Amounts(windows=3, clip_tokens=5)) == 0


def test_what_learns_keeps_its_input_besides() -> None:
    assert kept_of(("transform.*",)) < kept_of(("lm.*.xattn.*",)) < kept_of(("lm.*",))


def test_of_a_layer_that_is_computed_again_the_input_stays() -> None:
    assert kept_of(("lm.*",), how=How(recompute="full")) == 10 * MODEL.lm.hidden * 2
    less = kept_of(("transform.*",), how=How(recompute="selective"))
    assert 0 < less < kept_of(("transform.*",))


@pytest.mark.parametrize(("sequence", "least", "most"), [(False, 0.5, 0.9), (True, 0.5, 0.5)])
def test_tensor_ranks_share_heads_and_widths_and_under_sequence_parallelism_all(
    sequence: bool, least: float, most: float
) -> None:
    fused = How(fused=True)  # else each keeps the cosines and sines of all positions besides
    share = kept_of(("transform.*",), tensor=2, sequence=sequence, how=fused) / kept_of(("transform.*",), how=fused)
    assert least <= round(share, 6) <= most


def test_fused_units_keep_less() -> None:
    assert kept_of(("lm.*",), how=How(fused=True)) < kept_of(("lm.*",))


def test_an_encoder_that_is_computed_again_keeps_its_blocks_inputs() -> None:
    stage = tiny.config().curriculum["stage"]
    whole, again = Kept(4), Kept(4)
    keep_encoder(whole, MODEL.encoder, stage.trains, 64_064, How())
    keep_encoder(again, dataclasses.replace(MODEL.encoder, recompute=True), stage.trains, 64_064, How())
    assert again.of(Amounts(windows=1)) < 0.6 * whole.of(Amounts(windows=1))
