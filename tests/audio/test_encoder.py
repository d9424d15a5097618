"""A kind of encoder is found by name, or named as what it is not."""

import dataclasses

import pytest

from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.htsat_encoder import HTSATEncoder
from megatron_af.config import EncoderConfig
from megatron_af.config.components import UnknownComponent
from megatron_af.runs.check import check
from tests import tiny


@pytest.mark.parametrize("kind", ["htsat", "megatron_af.audio.htsat_encoder:HTSATEncoder"])
def test_a_kind_is_a_name_or_a_class(kind: str) -> None:
    assert type(encoder_of(EncoderConfig(kind=kind))) is HTSATEncoder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("htsta", "did you mean htsat"),
        ("nowhere.at_all:Encoder", "cannot be imported"),
        ("json:dumps", "no AudioEncoder"),
    ],
)
def test_a_kind_that_is_none_is_one_problem(kind: str, message: str) -> None:
    wrong = dataclasses.replace(
        tiny.config(), model=dataclasses.replace(tiny.config().model, encoder=EncoderConfig(kind=kind))
    )
    with pytest.raises(UnknownComponent, match=message):
        encoder_of(wrong.model.encoder)
    assert [told for told in check(wrong, 1) if "model.encoder.kind" in told]
