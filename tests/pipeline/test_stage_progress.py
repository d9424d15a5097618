"""Progress is read off the lines that stages and evaluations print, whatever else they say."""

from megatron_af.config import Config, StageConfig
from megatron_af.evaluate.hearing import AskedLine
from megatron_af.pipeline.stage_progress import ASKED, STEP, StageProgress
from megatron_af.train.callbacks import format_line
from tests.told import Told


def test_progress_reads_the_log_line() -> None:
    match = STEP.match(format_line({"step": 30.0, "loss": 1.25}, 400))
    assert match is not None and match.groups() == ("30", "400", "1.2500")


def test_progress_reads_how_far_the_questions_are() -> None:
    told = Told()
    asked = AskedLine(told, 10, ranks=2)
    asked(3)
    asked(3)  # another rank may not be done
    asked.end()
    found = [ASKED.match(line) for line in told.lines]
    assert [match.groups() for match in found if match] == [("6", "10"), ("10", "10")]
    assert told.lines[-1].endswith("eta 0:00")


def test_lines_become_progress_of_their_stage() -> None:
    told = Told()
    say = StageProgress(Config(name="t", curriculum={"clap": StageConfig(steps=40)}), told)
    for line in (
        "[clap] train: not trained yet", "[clap 1] " + format_line({"step": 40.0, "loss": 1.5}, 40),
        "[evaluate-clap] asked 3/4 75.0% | eta 0:01", "[other] step 1/2 50% | loss 3", "no step at all",
    ):  # fmt: skip
        say(line)
    assert [line.split(" | ")[0] for line in told.lines] == [
        "stage clap 0/40 0.0%", "stage clap 40/40 100.0%", "questions clap 3/4 75.0%",
    ]  # fmt: skip
