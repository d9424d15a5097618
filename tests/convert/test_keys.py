"""Every tensor of a published file is used, an alias, ignored for a reason, or an error."""

import pickle
from pathlib import Path

import pytest
import torch

from megatron_af.convert.keys import KeyReport, pickled_weights


def second(name: str) -> tuple[str, ...]:
    return (f"other.{name}",)


def test_each_key_has_one_fate() -> None:
    held = ["a", "other.a", "other.b", "layers.0.attn.relative_position_index", "rotary_emb.inv_freq", "stray"]
    report = KeyReport.of(held, ["a", "b", "c", "filters"], second, optional="^filters$")
    assert report.used == ("a", "other.b") and report.aliases == ("other.a",)
    assert set(report.ignored) == {"layers.0.attn.relative_position_index", "rotary_emb.inv_freq"}
    assert report.missing == ("c",) and report.unknown == ("stray",)
    fates = [*report.used, *report.aliases, *report.ignored, *report.unknown]
    assert sorted(fates) == sorted(held)
    assert str(report) == (
        "2 tensors used; 1 aliases; 2 ignored (1: indices and masks, computed here, "
        "1: positions, computed here in float32)"
    )


def test_what_is_missing_or_unknown_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"f\.pt: 1 tensors are missing: c; check model\.lm"):
        KeyReport.of(["a"], ["a", "c"]).check("f.pt", "model.lm")
    with pytest.raises(ValueError, match=r"f\.pt: 4 tensors belong to no part of this model: w, x, y, …"):
        KeyReport.of(["a", *"wxyz"], ["a"]).check("f.pt", "model.lm")
    KeyReport.of(["a", "bn0.num_batches_tracked"], ["a"]).check("f.pt", "model.lm")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Harmful()}, tmp_path / "f.pt")
    (tmp_path / "g.pt").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "h.pt").write_text("<html>")
    for name in "fgh":
        with pytest.raises(ValueError, match=rf"{name}\.pt: expected a file of torch\.save with tensors alone"):
            pickled_weights(tmp_path / f"{name}.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("held", ["text", torch.ones(2), [torch.ones(2)], {3: torch.ones(2)}, {"model": {}}, None])
def test_a_file_without_names_holds_no_state(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "f.pt")
    with pytest.raises(ValueError, match=r"f\.pt: expected the state of a model, got a file without tensors"):
        pickled_weights(tmp_path / "f.pt")


def test_what_torch_thinks_of_a_pickle_is_not_printed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "f.pt", pickle_protocol=3)
    recwarn.clear()
    assert list(pickled_weights(tmp_path / "f.pt")) == ["a"]
    assert not [str(one.message) for one in recwarn]


@pytest.mark.parametrize("holder", ["state_dict", "model_state_dict", "model", ""])
def test_a_state_is_found_wherever_it_was_put(tmp_path: Path, holder: str) -> None:
    state = {"module.a": torch.arange(3.0), "b": torch.ones(2)}
    torch.save({holder: state, "epoch": 3} if holder else state | {"epoch": 3}, tmp_path / "f.pt")
    weights = pickled_weights(tmp_path / "f.pt")
    assert weights.keys() == {"a", "b"} and torch.equal(weights["a"], torch.arange(3.0))
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="expected the state of a model, got a file without tensors"):
        pickled_weights(tmp_path / "empty.pt")
