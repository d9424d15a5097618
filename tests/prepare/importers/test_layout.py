"""What all layouts are read with."""

from pathlib import Path

import pytest

from dali_pipes.waves import AudioError
from megatron_af.data.rows import Clip, RowError
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError
from megatron_af.prepare.importers import layout
from megatron_af.prepare.importers.layout import Recordings, object_of, objects, seconds_of
from tests.data.toy import write_tone


def test_seconds_are_numbers_or_nothing() -> None:
    assert seconds_of({"d": "1.5"}, "d") == 1.5 and seconds_of({"d": 2}, "d") == 2.0
    assert seconds_of({}, "d") is None and seconds_of({"d": ""}, "d") is None
    for value in ("00:03", "nan", float("inf"), -1, [1], True, 10**400):
        with pytest.raises(RowError, match="'d' must be seconds"):
            seconds_of({"d": value}, "d")


def test_recordings_stay_below_the_root_and_missing_ones_have_a_hint(tmp_path: Path) -> None:
    write_tone(tmp_path / "w/a.wav", 1.0, 0)
    recordings = Recordings(DataRoot(str(tmp_path)), "w")
    assert recordings.clip("a.wav", 0.25) == Clip(path="w/a.wav", start=0.25, duration=0.75)
    for name in ("../a.wav", "/etc/passwd", "", None, 3, "\udce9.wav"):
        with pytest.raises(RowError):
            recordings.clip(name)
    for name in ("A.wav", "a.wav ", "a.mp3", "a"):
        with pytest.raises(AudioError, match=r"'a\.wav' is there"):
            recordings.clip(name)
    with pytest.raises(AudioError, match=r"ends before 5\.00 s"):
        recordings.clip("a.wav", 5.0)


def test_a_name_may_be_a_whole_path_below_the_root(tmp_path: Path) -> None:
    write_tone(tmp_path / "w/a b.wav", 1.0, 0)
    (tmp_path / "link").symlink_to(tmp_path)
    recordings = Recordings(DataRoot(str(tmp_path / "link")), "w")
    for name in (f"{tmp_path}/w/a b.wav", f"file://{tmp_path}/link/w/a b.wav"):
        assert recordings.clip(name).path == "w/a b.wav"
    with pytest.raises(RowError, match=r"is no place below data\.root .*: cut the beginning"):
        recordings.clip("/elsewhere/a b.wav")
    with pytest.raises(RowError, match="is an address: fetch"):
        recordings.clip("https://example.org/a.wav")
    with pytest.raises(AudioError, match=r"'a b\.wav' is there"):
        recordings.clip("a%20b.wav")


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    (tmp_path / "t.json").write_text('[{"a": 1, "b": 2, "b": 3}, {"a": 1}]')
    (_, twice), (_, once) = objects(root, "t.json")
    assert object_of(once) == {"a": 1}
    with pytest.raises(RowError, match="has the key 'b' twice"):
        object_of(twice)
    (tmp_path / "t.json").write_text('{"x": {"a": 1}, "x": {"a": 2}}')
    with pytest.raises(ForeignError, match=r"t\.json has the key 'x' twice"):
        list(objects(root, "t.json", is_one=lambda item: "a" in item))


def test_lines_are_decoded_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.json").write_text('\n"no object"\n' + '{"a": 1}\n' * 1000)
    seen: list[int] = []
    line = layout._line
    monkeypatch.setattr(layout, "_line", lambda text, number: seen.append(number) or line(text, number))
    found = objects(DataRoot(str(tmp_path)), "t.json")
    assert [next(found) for _ in range(3)] == [(2, "no object"), (3, {"a": 1}), (4, {"a": 1})]
    assert seen == [2, 3, 4]
    assert [number for number, _ in found] == list(range(5, 1003))


def test_objects_of_lists_and_lines(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    (tmp_path / "t.json").write_text('[{"a": 1}, 2]')
    assert list(objects(root, "t.json")) == [(1, {"a": 1}), (2, 2)]
    (tmp_path / "t.json").write_text('{"a": 1}\n\n{"a": \n{"a": 3}')
    (first, broken, third) = objects(root, "t.json")
    assert (first, third) == ((1, {"a": 1}), (4, {"a": 3})) and isinstance(broken[1], RowError)
    (tmp_path / "t.json").write_text('{"a": 1,\n"b"\n}')
    with pytest.raises(ForeignError, match="in line 3"):
        list(objects(root, "t.json"))
