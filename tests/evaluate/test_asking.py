"""Answers are kept as they come, and only what they follow from makes them count."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, ImportConfig
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.evaluate import asking
from megatron_af.evaluate.asking import Kept
from megatron_af.evaluate.benchmarks import Asked
from megatron_af.runs.benchmarks import Benchmark


@pytest.mark.parametrize("changed", ["yes", "no", ""])
def test_a_stopped_measurement_keeps_whole_lines_of_its_own_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    kept = Kept(tmp_path / "a/b.jsonl", "now")
    assert kept.read() == {}
    kept.add({(0, 3): ("rain", [-1.0, -2.5]), (1, 3): (None, None)})
    Kept(kept.path, "before").add({(0, 4): ("wind", None)})
    with kept.path.open("a") as file:
        file.write('{"state": "now", "wording": 0, "que')  # killed in the middle of a line
    assert kept.read() == {(0, 3): ("rain", [-1.0, -2.5]), (1, 3): (None, None)}
    kept.add({(0, 5): ("bells", None)})
    assert kept.read()[0, 5] == ("bells", None), "goes on behind what was whole"
    whole = kept.read()
    other = b'{"state": "now", "wording": 0, "question": 9, "answer": 3, "logprobs": 0}'
    usable = other.replace(b"3", b'"a"').replace(b" 0}", b" null}")
    numbers = [usable.replace(b"9", number) for number in (b"1e999", b"9.5")]
    for damage in (b"[]", b"\xff", b"[" * 9000, other, *numbers):
        kept.path.write_bytes(damage + b"\n" + kept.path.read_bytes())
    assert kept.read() == whole, "a damaged line is asked again"
    monkeypatch.setattr(asking, "source_revision", lambda: ("f00", changed))
    kept.settle(waits=True)
    assert kept.read() == whole and len(kept.path.read_text().splitlines()) == len(whole)
    kept.settle(waits=False)
    assert kept.read() == ({} if changed == "yes" else whole)
    assert Kept(kept.path, "before").read() == {}


CLIP = Clip(path="s.tar", duration=2.0, start=0.5, offset=512, length=99, digest="d")
ROW = Row(id="r", clips=(Clip(path="a.wav", duration=1.0), CLIP), questions=(Question(prompt="?", output="x"),))
ASKED = Asked(id="r", row=ROW, references=("x",))
SUITE = Benchmark(title="toy", source=ImportConfig(format="rows", path="toy.jsonl"))


def test_an_answer_knows_where_its_recording_lies() -> None:
    assert asking._answered(ASKED, 0, SUITE, {(0, 0): ("x", None)}).clip == CLIP


def test_answers_follow_from_weights_words_examples_recordings_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "checkpoint_digest", str)

    def state(checkpoint: str = "a", suite: Benchmark = SUITE, row: Row = ROW, recordings: str = "r") -> str:
        return asking.state_of(Config(name="toy"), suite, Path(checkpoint), [[row]], recordings)

    twice = replace(ROW, questions=ROW.questions * 2)
    probes = replace(SUITE, probes=("silent",))
    states = [state(), state("b"), state(suite=probes), state(row=twice), state(recordings="s")]
    assert state(suite=replace(SUITE, metrics=("exact",))) == states[0], "a metric asks nothing"
    monkeypatch.setattr(asking, "code_version", lambda: "another")
    assert len({*states, state()}) == 6
