"""Every tensor of a published file is used, an alias, ignored for a reason, or an error."""

import argparse
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from megatron_af.convert import keys
from megatron_af.convert.keys import KeyReport, bare_names, compare_aliases, pickled_weights
from megatron_af.foreign import ForeignError


def second(name: str) -> tuple[str, ...]:
    return (f"other.{name}",)


def test_each_key_has_one_fate() -> None:
    held = ["a", "other.a", "other.b", "layers.0.attn.relative_position_index", "rotary_emb.inv_freq", "stray"]
    report = KeyReport.of(held, ["a", "b", "c", "filters"], second, optional="^filters$")
    assert report.used == ("a", "other.b") and report.aliases == {"other.a": "a"}
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


@pytest.mark.parametrize(
    "changed", [torch.arange(6.0).view(3, 2) + torch.eye(3)[:, :2], torch.ones(3), torch.arange(4.0).view(2, 2)]
)
def test_an_alias_that_is_not_the_same_is_refused(changed: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ROWS", 2)
    held = {"a": torch.arange(6.0).view(3, 2), "other.a": torch.arange(6.0).view(3, 2).half(), "b": torch.tensor(1.0)}
    report = KeyReport.of([*held, "other.b"], ["a", "b"], second)
    compare_aliases(report, (held | {"other.b": torch.tensor(1.0)}).__getitem__, "f.pt")
    for name in ("other.a", "other.b"):
        other = held | {"other.b": torch.tensor(1.0)} | {name: changed}
        with pytest.raises(ForeignError, match=rf"f\.pt: {name} is not {name[-1]}, whose second name it is, .*; fetch"):
            compare_aliases(report, other.__getitem__, "f.pt")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Harmful()}, tmp_path / "f.pt")
    (tmp_path / "g.pt").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "h.pt").write_text("<html>")
    for name, why in (("f", "print, which is not run"), ("g", "another version"), ("h", "is a web page")):
        told = rf"{name}\.pt: expected a file of torch\.save with tensors alone, .*{why}"
        with pytest.raises(ValueError, match=told) as refused:
            pickled_weights(tmp_path / f"{name}.pt")
        assert "weights_only" not in str(refused.value), "nobody is asked to run what is in it"
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
    torch.save({holder: state} if holder else state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(pickled_weights(tmp_path / "old.pt")["a"], torch.arange(3.0)), "as before torch 1.6"
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="expected the state of a model, got a file without tensors"):
        pickled_weights(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    "beside", [np.float64(0.9), np.int32(3), np.ones(3), argparse.Namespace(lr=1e-3, blocks=[1, 2]), Path("/data")]
)
def test_what_a_training_run_keeps_beside_its_weights_is_passed_over(tmp_path: Path, beside: object) -> None:
    """LAION-CLAP's files hold numbers of numpy."""
    torch.save({"best": beside, "state_dict": {"a": torch.ones(2)}}, tmp_path / "f.pt")
    assert list(pickled_weights(tmp_path / "f.pt")) == ["a"]


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath"])
def test_paths_are_passed_over_whichever_python_and_system_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    kind = type(name, (), {"__module__": module})
    writer = sys.modules.get(module) or types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, writer)
    monkeypatch.setattr(writer, name, kind, raising=False)
    torch.save({"data": kind(), "state_dict": {"a": torch.ones(2)}}, tmp_path / "f.pt")
    monkeypatch.undo()
    assert list(pickled_weights(tmp_path / "f.pt")) == ["a"]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (torch.eye(3).to_sparse(), r"f\.pt: b is sparse, quantised or without numbers"),
        (torch.ones(3, device="meta"), r"f\.pt: b is sparse, quantised or without numbers"),
    ],
)
def test_tensors_without_numbers_of_their_own_are_refused(tmp_path: Path, odd: torch.Tensor, told: str) -> None:
    torch.save({"model": {"state_dict": {"a": torch.ones(2), "b": odd}}}, tmp_path / "f.pt")
    with pytest.raises(ValueError, match=told):
        pickled_weights(tmp_path / "f.pt")


def test_no_class_is_made_whatever_others_allow(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Made()}, tmp_path / "f.pt")
    with torch.serialization.safe_globals([Made]):
        with pytest.raises(ValueError, match=r"names \S+\.Made, which is not run"):
            pickled_weights(tmp_path / "f.pt")
        assert Made in torch.serialization.get_safe_globals()


class Made:
    """Of a library that tells torch to make it."""


@pytest.mark.parametrize(("name", "told"), [("script", "got TorchScript"), ("numpy", "an archive of something else")])
def test_other_archives_are_told_by_what_they_are(tmp_path: Path, name: str, told: str) -> None:
    if name == "script":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2)), str(tmp_path / "f.npz"))
    else:
        np.savez(tmp_path / "f.npz", a=np.ones(2))
    with pytest.raises(ValueError, match=told):
        pickled_weights(tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"GGUF\3\0\0\0", "is GGUF, .*take the model's release as safetensors"),
        (save({"a": torch.ones(2)}), "got a safetensors file; .* name the folder"),
        (b"\x08\x07\x12\x07pytorch", "got a file of something else"),
        (b"\x89HDF\r\n\x1a\n", "got one that is HDF5$"),
    ],
)
def test_other_files_of_weights_are_told_by_what_they_are(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        pickled_weights(tmp_path / "f.pt")


def test_a_pickle_of_another_protocol_is_told_of(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "f.pt", pickle_protocol=4)
    with pytest.raises(ValueError, match="its pickle is of another version than torch writes"):
        pickled_weights(tmp_path / "f.pt")


def test_names_are_those_of_the_model_whatever_wrapped_it(tmp_path: Path) -> None:
    held = ("module._orig_mod.a", "_orig_mod.module.b", "layers.0._orig_mod.c", "submodule.d")
    assert list(bare_names(held, "f")) == ["a", "b", "layers.0.c", "submodule.d"]
    with pytest.raises(ForeignError, match=r"f holds a and module\.a: expected one of them"):
        bare_names(["a", "module.a"], "f")
