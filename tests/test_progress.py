"""Plain lines where there is no terminal: neither silence nor one for every step; bars on a terminal."""

import io

import pytest
from rich.console import Console

from megatron_af import progress as module
from megatron_af.progress import Progress, duration, silent


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_lines_by_time_and_share_with_an_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    file = io.StringIO()
    with Progress(Console(file=file)) as progress:
        for done in range(1001):
            clock.now = done * 1.0
            progress.update("scenes", done, 1000, "loss 1.5" if done == 1000 else "")
        progress.update("scenes", 1000, 1000)
        progress.say("made")
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["scenes 0/1000 0.0% | eta –", "scenes 30/1000 3.0% | eta 16:10"]
    assert lines[-2:] == ["scenes 1000/1000 100.0% | loss 1.5 | eta 0:00", "made"]
    assert len(lines) == 1 + 33 + 1 + 1


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 2), (0.01, 11), (0.1, 21)])
def test_fast_work_is_said_by_share_but_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    file = io.StringIO()
    with Progress(Console(file=file)) as progress:
        for done in range(1, 1001):
            clock.now += seconds
            progress.update("scenes", done, 1000)
    assert len(file.getvalue().splitlines()) == lines


def test_work_of_unknown_length_is_said_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    file = io.StringIO()
    with Progress(Console(file=file)) as progress:
        for done in range(70):
            clock.now = float(done)
            progress.update("rows", done, None, "2 left out")
    assert file.getvalue().splitlines() == [f"rows {done} | 2 left out" for done in (30, 60)]


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with silent() as progress:
        progress.update("scenes", 1, 1)
        progress.say("made")
    assert capsys.readouterr().out == ""


def test_bars_on_a_terminal_without_colours_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    with Progress(Console(file=file, force_terminal=True, width=100)) as progress:
        progress.update("scenes", 3, 3)
    assert "scenes" in file.getvalue() and "100%" in file.getvalue() and "3/3" not in file.getvalue()
    assert "\x1b[3" not in file.getvalue(), "no colour"


def test_what_was_done_at_once_has_nothing_left() -> None:
    file = io.StringIO()
    with Progress(Console(file=file)) as progress:
        progress.update("stage lm", 350, 350)
    assert file.getvalue() == "stage lm 350/350 100.0% | eta 0:00\n"


def test_duration() -> None:
    assert [duration(s) for s in (59.6, 3723, float("nan"))] == ["1:00", "1:02:03", "–"]
