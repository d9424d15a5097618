"""The chance line is what guessing by frequency would lose, by hand."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.config import StageConfig
from megatron_af.data.rows import Question, Row, RowError
from megatron_af.train.callbacks.chance import Chance, guessing
from tests.data.toy import toy_config, write_manifest
from tests.text.toy_tokenizer import words_tokenizer

TOKENIZER = words_tokenizer("yes", "no", "a", "dog")


def rows(*pairs: tuple[str, str]) -> list[Row]:
    return [Row(id=str(i), questions=(Question(prompt=p, output=o),)) for i, (p, o) in enumerate(pairs)]


def test_guessing_costs_the_entropy_of_each_questions_answers() -> None:
    found = guessing(rows(*[("loud?", "yes")] * 3, ("loud?", "no"), *[("What?", "a dog")] * 4), TOKENIZER)
    assert found is not None
    nats, tokens = found
    assert nats == pytest.approx((-3 * math.log(0.75) - math.log(0.25)) / 8)
    assert tokens == (4 * (1 + 2) + 4 * (2 + 2)) / 8
    assert guessing(rows(("a?", "yes"), ("a?", "no"), ("b?", "yes")), TOKENIZER) is None, "answers that do not repeat"
    assert guessing([], TOKENIZER) is None


def test_rows_that_cannot_be_read_do_not_count() -> None:
    class Some(list[Row]):
        def __getitem__(self, place: Any) -> Any:
            if place == 0:
                raise RowError("bad")
            return super().__getitem__(place)

    assert guessing(Some(rows(("x?", "a"), *[("x?", "yes"), ("x?", "no")] * 2)), TOKENIZER) == (math.log(2), 3.0)


def test_data_sets_count_by_their_weight_and_length(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    root = Path(config.data.root)
    sets = {
        "a": write_manifest(root, "a", rows(*[("x?", "yes"), ("x?", "no")] * 4)),
        "b": write_manifest(root, "b", rows(*[("y?", "a dog")] * 4)),
    }
    config = replace(config, data=replace(config.data, datasets=sets))

    def line(**blend: float) -> dict[str, float]:
        chance, record = Chance(config, TOKENIZER), dict[str, float]()
        trainer: Any = SimpleNamespace(stage=StageConfig(blend=blend))
        chance.on_start(trainer)
        chance.on_step(trainer, record)
        return record

    assert line(a=1.0) == {"chance_loss": pytest.approx(math.log(2) / 3)}
    assert line(a=1.0, b=4.0) == {"chance_loss": pytest.approx(8 * math.log(2) / (8 * 3 + 16 * 4))}
    write_manifest(root, "b", rows(("y?", "a"), ("z?", "dog")))
    assert line(a=1.0, b=4.0) == {}, "a part without a line has none"
