"""What has ended is marked, also where it failed."""

import types

import pytest

from megatron_af.bench import start_marks
from megatron_af.bench.start_marks import launcher_seconds, marking


def test_the_end_of_each_call_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_marks, "MARKS", [])
    owner = types.SimpleNamespace(double=lambda x: 2 * x, fail=lambda: 1 / 0)
    marking(owner, "double", "doubled")
    marking(owner, "fail", "failed")
    assert owner.double(4) == 8
    with pytest.raises(ZeroDivisionError):
        owner.fail()
    names, walls, processor = zip(*start_marks.MARKS, strict=True)
    assert names == ("doubled", "failed") and walls[0] <= walls[1] and processor[0] <= processor[1]


def test_the_launchers_time_is_its_own() -> None:
    assert 0 <= launcher_seconds() < 1e6
