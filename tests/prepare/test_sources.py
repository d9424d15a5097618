"""Copies of a recording are found by what they hold; a tenth of the recordings is held out, the same every time."""

from pathlib import Path

from megatron_af.data.rows import Clip, Row
from megatron_af.data.storage import DataRoot
from megatron_af.prepare.parts import contents_of
from megatron_af.prepare.sources import held_out, without_copies


def row(name: str, start: float = 0.0, number: str = "") -> Row:
    return Row(id=f"{name}{number}", clips=(Clip(path=name, duration=1.0, start=start),), captions=("x",))


def of(folder: Path, *rows: Row) -> tuple[list[int], dict[int, int]]:
    return without_copies(DataRoot(str(folder)), rows, contents_of(str(folder), folder / "kept", rows))


def test_the_same_recording_under_another_name_is_a_copy(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    assert of(tmp_path, row("a"), row("b"), row("c"), row("a", number="2")) == ([0, 1, 3], {2: 0})
    assert of(tmp_path, row("a"), row("c", start=5.0)) == ([0, 1], {}), "another piece of it"
    assert of(tmp_path, row("gone"), row("lost")) == ([0, 1], {}), "what is not there is no copy of what is not there"


def test_recordings_alike_where_they_are_looked_at_are_compared_whole(tmp_path: Path) -> None:
    quiet = bytearray(400_000)
    (tmp_path / "a").write_bytes(quiet)
    (tmp_path / "same").write_bytes(quiet)
    quiet[100_000] = 1  # behind the beginning and before the middle
    (tmp_path / "other").write_bytes(quiet)
    assert of(tmp_path, row("a"), row("other"), row("same")) == ([0, 1], {2: 0})


def test_prepared_clips_have_no_names_to_tell_apart(tmp_path: Path) -> None:
    clips = [Clip(path=f"{shard}.tar", duration=1.0, offset=512, length=9, digest="d") for shard in "ab"]
    rows = [Row(id=clip.path, clips=(clip,), captions=("x",)) for clip in clips]
    assert of(tmp_path, *rows) == ([0, 1], {})


def test_a_tenth_is_held_out_and_stays_so_when_others_come() -> None:
    rows = [row(str(n)) for n in range(4000)]
    contents = [[f"content {n}"] for n in range(4000)]
    held = held_out(rows, contents)
    assert 340 <= sum(held) <= 460, "within three standard errors of 400"
    assert held_out(rows[1000:3000], contents[1000:3000]) == held[1000:3000]
    assert held_out([row("z", number=str(n)) for n in range(4000)], contents) == held, "whatever they are called"


def test_what_shares_a_recording_stands_on_one_side() -> None:
    rows = [row(str(n)) for n in range(3000)]
    shared = [[f"a{n // 3}", f"b{n}"] for n in range(3000)]
    held = held_out(rows, shared)
    assert all(len(set(held[n : n + 3])) == 1 for n in range(0, 3000, 3)) and len(set(held)) == 2
