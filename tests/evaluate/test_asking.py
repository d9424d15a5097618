"""Answers are kept as they come, and only what they follow from makes them count."""

from pathlib import Path

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.evaluate import asking
from megatron_af.evaluate.asking import Kept
from megatron_af.evaluate.benchmarks import Asked
from megatron_af.runs.benchmarks import Benchmark


def test_a_stopped_measurement_keeps_whole_lines_of_its_own_state(tmp_path: Path) -> None:
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
    kept.forget()
    kept.forget()
    assert not kept.path.exists()


def test_an_answer_knows_where_its_recording_lies() -> None:
    clip = Clip(path="s.tar", duration=2.0, start=0.5, offset=512, length=99, digest="d")
    row = Row(id="r", clips=(Clip(path="a.wav", duration=1.0), clip), questions=(Question(prompt="?", output="x"),))
    suite = Benchmark(title="toy", source=ImportConfig(format="manifest", path="toy.jsonl"))
    asked = Asked(id="r", row=row, references=("x",))
    assert asking._answered(asked, 0, suite, {(0, 0): ("x", None)}).clip == clip
