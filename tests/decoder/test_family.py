"""A family is found by name, or named as what it is not."""

import dataclasses

import pytest

from megatron_af.config import LMConfig
from megatron_af.config.components import UnknownComponent
from megatron_af.decoder.family import family_of
from megatron_af.decoder.qwen2 import Qwen2
from megatron_af.runs.check import check
from tests import tiny


@pytest.mark.parametrize("family", ["qwen2", "megatron_af.decoder.qwen2:Qwen2"])
def test_a_family_is_a_name_or_a_class(family: str) -> None:
    assert type(family_of(LMConfig(family=family))) is Qwen2


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen", "did you mean qwen2"),
        ("nowhere.at_all:Family", "cannot be imported"),
        ("json:dumps", "is no LanguageFamily"),
    ],
)
def test_a_family_that_is_none_is_one_problem(family: str, message: str) -> None:
    config = tiny.config()
    lm = dataclasses.replace(config.model.lm, family=family)
    with pytest.raises(UnknownComponent, match=message):
        family_of(lm)
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))
    assert [told for told in check(wrong, 1) if "model.lm.family" in told]
