"""Requests become rows, or say what is wrong with them."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_af.inference.requests import (
    BadRequest,
    RequestRows,
    TooLarge,
    files_below,
    from_base64,
    no_files,
    own_decoding,
)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.sin(np.arange(32_000) * 0.1).astype(np.float32), 16_000)
    return path


@pytest.mark.parametrize("form", ["text", "path", "file URI", "bytes", "base64", "data URI", "lines", "for URLs"])
def test_audio_in_any_form(wav: Path, form: str) -> None:
    content = wav.read_bytes()
    text = base64.b64encode(content).decode()
    audio: Any = {
        "text": str(wav), "path": wav, "file URI": f"file://{wav}", "bytes": content, "base64": text,
        "data URI": f"data:audio/wav;base64,{text}", "lines": base64.encodebytes(content).decode(),
        "for URLs": base64.urlsafe_b64encode(content).decode().rstrip("="),
    }[form]  # fmt: skip
    with RequestRows() as requests:
        row = requests.row({"prompt": "what is it?", "audio": audio}, "request 0")
        assert (requests.root / row.clips[0].path).read_bytes() == content
    assert row.clips[0].duration == 2.0 and row.template == "single"
    assert not requests.root.exists() and wav.exists()


def test_a_recording_alone(wav: Path) -> None:
    with RequestRows() as requests:
        row = requests.recording(wav, "audio 0")
        assert (row.id, row.clips[0].duration, row.questions) == ("audio 0", 2.0, ())
        with pytest.raises(BadRequest, match=r"audio 1: expected a file, base64 or bytes, got 'gone\.wav'"):
            requests.recording("gone.wav", "audio 1")


def test_without_audio_it_is_text(wav: Path) -> None:
    with RequestRows() as requests:
        assert requests.row({"prompt": "hello", "audio": float("nan"), "history": None}, "r").clips == ()


def test_history_is_a_dialogue_and_examples_are_interleaved(wav: Path) -> None:
    history = [{"user": "what is it?", "assistant": "a tone"}]
    examples = np.array([{"audio": str(wav), "prompt": "what is it?", "answer": "a tone"}])  # as in a table's cell
    with RequestRows() as requests:
        talk = requests.row({"prompt": "is it loud?", "audio": str(wav), "history": history}, "r")
        shots = requests.row({"prompt": "what is it?", "audio": str(wav), "examples": examples}, "r")
    assert (talk.template, len(talk.clips)) == ("dialogue", 1)
    assert [(q.prompt, q.output) for q in talk.questions] == [("what is it?", "a tone"), ("is it loud?", "")]
    assert (shots.template, len(shots.clips)) == ("interleaved", 2)
    assert [q.output for q in shots.questions] == ["a tone", ""]


def test_a_conversation_goes_on_behind_an_empty_answer() -> None:
    history = [{"user": "what is it?", "assistant": ""}]
    with RequestRows() as requests:
        talk = requests.row({"prompt": "is it loud?", "history": history}, "r")
    assert [(q.prompt, q.output) for q in talk.questions] == [("what is it?", ""), ("is it loud?", "")]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "request 3: prompt: expected text"),
        ({"prompt": "  "}, "prompt: expected text"),
        ({"prompt": "x", "audio": "gone.wav"}, "audio: expected a file, base64 or bytes, got 'gone.wav'"),
        ({"prompt": "x", "audio": Path("gone.wav")}, "audio: expected a file, got 'gone.wav', which does not exist"),
        ({"prompt": "x", "audio": 7}, "got int"),
        ({"prompt": "x", "audio": b"not a recording"}, "expected a recording, got what cannot be decoded"),
        ({"prompt": "caf\udce9"}, r"prompt: expected UTF-8, got 'caf\\udce9': where it comes from has another"),
        ({"prompt": "x", "audio_path": "a.wav"}, "audio_path: no key of a request; did you mean audio"),
        ({"prompt": "x", "temperature": 1}, "temperature: no key of a request; known: prompt, audio"),
        ({"prompt": "x", "history": [{"user": "a", "assistant": "b", "audio": "c"}]}, "audio: no key of a turn"),
        ({"prompt": "x", "examples": [{"audio": b"", "text": "a"}]}, r"examples\[0\]: text: no key of an example"),
        ({"prompt": "x", "audio": "UklG RiR9"}, "got 'UklG RiR9', which is neither"),
        ({"prompt": "x", "history": "hello"}, "history: expected a list of mappings"),
        ({"prompt": "x", "history": [{"user": "a"}]}, r"history\[0\]: assistant: expected text"),
        ({"prompt": "x", "examples": [{"audio": b"", "prompt": "a", "answer": "b"}]}, "expected audio behind"),
        ({"prompt": "x", "history": [{"user": "a"}], "examples": [{"audio": b""}]}, "got both"),
    ],
)
def test_a_bad_request_is_named(request_: dict[str, Any], says: str) -> None:
    with RequestRows() as requests, pytest.raises(BadRequest, match=says):
        requests.row(request_, "request 3")


def test_base64_as_mail_folds_it_and_names_as_browsers_write_them(wav: Path, tmp_path: Path) -> None:
    data = wav.read_bytes()
    text = base64.b64encode(data).decode()
    assert from_base64("\r\n ".join(text[i : i + 76] for i in range(0, len(text), 76))) == data
    with pytest.raises(ValueError, match=r"'\+' becomes a space"):
        from_base64("AA A" * 30)
    named = tmp_path / "a b.wav"
    named.write_bytes(data)
    for name in (f"file://{tmp_path}/a%20b.wav", f"file://{named}", f"file://localhost{named}"):
        with RequestRows() as requests:
            assert requests.recording(name, "r").clips[0].duration > 0


@pytest.mark.parametrize("own", ["x", [1], 3])
def test_how_a_request_is_decoded_is_a_mapping(own: object) -> None:
    with pytest.raises(BadRequest, match="request 1: decoding: expected a mapping such as"):
        own_decoding({"decoding": own}, "request 1: ")
    assert own_decoding({"decoding": None}, "") == {}


@pytest.mark.parametrize("length", [256, 1024, 4092, 8192])
def test_base64_of_any_length_is_no_name_of_a_file(length: int) -> None:
    text = base64.b64encode(bytes(length // 4 * 3)).decode()
    assert len(text) == length
    with RequestRows() as requests, pytest.raises(BadRequest, match="got what cannot be decoded"):
        requests.recording(text, "audio 0")


def test_a_name_without_a_suffix_is_no_base64() -> None:
    with RequestRows(no_files) as requests, pytest.raises(BadRequest, match="'clips/rain1', which is neither"):
        requests.recording("clips/rain1", "audio 0")


def test_strangers_name_files_below_one_folder_only(wav: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    inside = wav.rename(shared / "tone.wav")
    outside = tmp_path / "secret.wav"
    outside.write_bytes(inside.read_bytes())
    (shared / "way_out.wav").symlink_to(outside)
    with RequestRows(files_below(shared)) as requests:
        for name in ("tone.wav", str(inside), f"file://{inside}"):
            assert requests.recording(name, "audio 0").clips[0].duration == 2.0
        for name in (str(outside), "../secret.wav", "way_out.wav", f"file://{outside}", "gone.wav", "a\0b", "é"):
            with pytest.raises(BadRequest, match=r"audio 1: expected a file, base64 or bytes, got .* is neither"):
                requests.recording(name, "audio 1")
    with RequestRows(no_files) as requests, pytest.raises(BadRequest, match="which is neither"):
        requests.recording(str(inside), "audio 2")


def test_a_recording_that_is_too_long_leaves_nothing(wav: Path) -> None:
    with RequestRows(max_seconds=1.5) as requests:
        with pytest.raises(TooLarge, match=r"audio: expected at most 1\.5 s, got a recording of 2\.0 s"):
            requests.row({"prompt": "x", "audio": wav.read_bytes()}, "request 0")
        assert list(requests.root.iterdir()) == []


def test_a_recording_that_is_small_and_decodes_to_gigabytes_leaves_nothing(tmp_path: Path) -> None:
    wide = tmp_path / "wide.flac"
    soundfile.write(wide, np.zeros((192_000, 8), np.float32), 192_000)
    assert wide.stat().st_size < 100_000
    with RequestRows(max_seconds=15.0) as requests:
        said = r"audio: expected at most 1,440,000 samples, got 1\.0 s of 1,536,000 a second in all channels; mix it"
        with pytest.raises(TooLarge, match=said):
            requests.row({"prompt": "x", "audio": wide.read_bytes()}, "request 0")
        assert list(requests.root.iterdir()) == []
    with RequestRows() as requests:
        assert requests.row({"prompt": "x", "audio": wide}, "r").clips[0].duration == 1.0, "who asks as themselves may"


def test_what_was_answered_is_forgotten(wav: Path) -> None:
    with RequestRows() as requests:
        rows = [requests.row({"prompt": "x", "audio": audio}, "r") for audio in (wav, wav.read_bytes())]
        for row in rows:
            requests.forget(row)
        assert list(requests.root.iterdir()) == [] and wav.exists()
