"""Benchmarks asked of a trained stage: one run, every scorer, the same on any ranks; what was stopped goes on."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import Config, JudgeConfig, RetrievalConfig, StageConfig
from megatron_af.data.rows import Clip, Row
from megatron_af.evaluate import asking, suites
from megatron_af.evaluate.answered import Answered, read_answered, read_scores
from megatron_af.evaluate.benchmarks import Questions
from megatron_af.evaluate.metrics.base import Means
from megatron_af.evaluate.suite_report import report_of
from megatron_af.evaluate.suites import measure_answers, measure_suites, measure_suites_behind, of_recordings, said
from megatron_af.runs.benchmarks import load_benchmark
from megatron_af.runs.identity import evaluation_inputs
from megatron_af.runs.paths import resolve_entry
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.results import Results, metric_patterns
from tests.data.toy import write_tone
from tests.distributed import run_distributed
from tests.prepare.endpoint import Server
from tests.trained_run import trained_run

SUITE = """title: toy
source:
  format: json
  path: toy.json
  columns: {audio: file, prompt: question, output: answer, options: choices, skill: skill}
wordings: ["{question} {options}", "w1 {question}", "{question}"]
metrics: [exact, match, letter, likelihood, nearest, cider, judge]
probes: [exchanged, silent, shifted, options, cited, uncited]
published: [{model: paper, metric: likelihood, value: 50.0, source: "arXiv 2503.03983"}]
"""


def suite_run(folder: Path, questions: int = 7) -> Config:
    config = trained_run(folder)
    items = []
    for i in range(questions):
        write_tone(folder / f"{i % 3}.wav", 2.0, 10 * (i % 3))
        choices = [f"w{i}", f"w{i + 20}", f"w{i + 40} w2"]  # "w0" stands for what the tokenizer does not know
        items.append({"file": f"{i % 3}.wav", "question": f"w5 w{i + 60}", "answer": choices[i % 3], "choices": choices,
                      "skill": "ab"[i % 2]})  # fmt: skip
    items.append({"file": "gone.wav", "question": "w5", "answer": "w1", "choices": ["w1", "w2"], "skill": "a"})
    items.append({"file": "0.wav", "question": "w5", "answer": "w9", "choices": ["w1", "w2"], "skill": "a"})
    (folder / "toy.json").write_text(json.dumps(items))
    (folder / "toy.yaml").write_text(SUITE)
    stage = dataclasses.replace(config.curriculum["stage"], suites=(str(folder / "toy.yaml"),))
    return dataclasses.replace(
        config, stage="stage", curriculum={**config.curriculum, "stage": stage}, retrieval=RetrievalConfig(stage="clap")
    )


def marked(item: dict[str, Any]) -> dict[str, Any]:
    return {"id": item["id"], "correctness": 5, "detail": 5, "bluntness": 5}


def measure(rank: int, world_size: int, config: Config, output: Path | None, fail_after: int = 0) -> None:
    if fail_after:
        asking.TOGETHER = 2
        add, added = asking.Kept.add, []

        def adds_and_fails(kept: asking.Kept, new: asking.Done) -> None:
            add(kept, new)
            added.append(new)
            if len(added) == fail_after:
                raise KeyboardInterrupt

        asking.Kept.add = adds_and_fails  # type: ignore[method-assign]
    suites = config.curriculum[config.stage].suites
    try:
        measure_suites(config, suites, resolve_entry(config, config.stage), output)
    except KeyboardInterrupt:
        assert fail_after


def counted(file: Path) -> int:
    return len(file.read_text().splitlines())


@pytest.mark.slow
def test_every_scorer_measures_the_same_answers_on_any_ranks(tmp_path: Path) -> None:
    config = suite_run(tmp_path)
    run_distributed(measure, 2, config, None)
    folder = config.stage_folder("stage")
    report = json.loads((folder / "suite-toy.json").read_text())
    assert report["n"] == 7 and report["left_out"] == {"missing": 1, "its answer is none of its options": 1}
    assert {"exact", "match", "letter", "likelihood", "nearest"} <= report["intervals"].keys()
    assert report["skipped"]["judge"] == "evaluation.judge names no endpoint and model"
    assert len(report["wordings"]["exact"]) == 3 and "likelihood" not in report["wordings"]
    assert set(report["skills"]) == {"a", "b"} and "distance" in report["published"][0]
    answered = read_answered(folder / "suite-toy.parquet")
    assert [len(one.answers) for one in answered] == [3] * 7 and [len(one.probed) for one in answered] == [6] * 7
    assert report["probes"].keys() == {"exchanged", "silent", "shifted", "options", "cited", "uncited"}
    assert report["probes"]["silent"].keys() >= {"exact", "match", "letter"}
    assert (folder / "suite-toy.silent/silence-2.wav").is_file()
    muted = [sorted((folder / f"suite-toy.{probe}").glob("*.wav")) for probe in ("cited", "uncited")]
    assert len(muted[0]) >= 3 and {file.name for file in muted[0]}.isdisjoint(file.name for file in muted[1])
    assert [len(one.logprobs) for one in answered] == [0] + [3] * 6 and report["unparseable"]["likelihood"] == 1
    assert {one.audio for one in answered} == {"0.wav", "1.wav", "2.wav"}
    assert read_scores(folder / "suite-toy.parquet").keys() >= {"exact", "likelihood"}
    assert len((folder / "suite-toy.left_out.jsonl").read_text().splitlines()) == 2

    metrics = Results.load(folder, checkpoint_digest(resolve_entry(config, "stage"))).metrics
    assert metrics["toy/likelihood"] == report["likelihood"]
    assert "toy/*" in metric_patterns(config.curriculum["stage"])

    alone = tmp_path / "alone"
    run_distributed(measure, 1, config, alone, 2)
    kept = alone / "toy/suite-toy.answers.jsonl"
    assert counted(kept) == 4 and not (alone / "toy/suite-toy.json").exists()
    run_distributed(measure, 1, config, alone)
    assert counted(kept) == 7 * (3 + 6)
    assert read_answered(alone / "toy/suite-toy.parquet")[0].answers == answered[0].answers
    assert [one.answers for one in read_answered(alone / "toy/suite-toy.parquet")] == [one.answers for one in answered]
    stamp = (alone / "toy/suite-toy.json").stat().st_mtime_ns
    run_distributed(measure, 1, config, alone)
    assert (alone / "toy/suite-toy.json").stat().st_mtime_ns == stamp, "measured already"

    report = json.loads((alone / "toy/suite-toy.json").read_text())  # as of a metric that lacked a package, till now
    report["skipped"] |= {"letter": "needs a package"}
    (alone / "toy/suite-toy.json").write_text(json.dumps(report))
    first, _, rest = kept.read_text().partition("\n")
    kept.write_text(json.dumps(json.loads(first) | {"answer": "said before"}) + "\n" + rest)
    run_distributed(measure, 1, config, alone)
    assert json.loads((alone / "toy/suite-toy.json").read_text())["skipped"].keys() == {"judge"}
    assert read_answered(alone / "toy/suite-toy.parquet")[0].answers[0] == "said before", "and nothing was asked"

    # A judge that is not there costs the judge alone, and when it is there again nothing else is asked.
    judged, gone = tmp_path / "judged", JudgeConfig(endpoint="http://127.0.0.1:9/v1", model="toy")
    waiting = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, judge=gone))
    run_distributed(measure, 1, waiting, judged)
    report = json.loads((judged / "toy/suite-toy.json").read_text())
    assert "what is done is kept" in report["skipped"]["judge"] and report["likelihood"] == metrics["toy/likelihood"]
    server = Server(lambda items, number: (200, json.dumps({"judgements": [marked(item) for item in items]}), {}))
    there = dataclasses.replace(gone, endpoint=server.endpoint)
    waiting = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, judge=there))
    run_distributed(measure, 1, waiting, judged, 1)  # it would fail at the first new answer
    server.close()
    report = json.loads((judged / "toy/suite-toy.json").read_text())
    assert report["judge"] == 50.0 and "judge" not in report["skipped"]
    assert report["likelihood"] == metrics["toy/likelihood"]

    # Another recording under a name: what is kept of the old one counts no more, and neither does what was made of it.
    run_distributed(measure, 1, config, tmp_path / "half", 2)
    write_tone(tmp_path / "0.wav", 2.0, 70)
    write_tone(tmp_path / "gone.wav", 2.0, 30)
    run_distributed(measure, 1, config, alone)
    report = json.loads((alone / "toy/suite-toy.json").read_text())
    assert report["n"] == 8 and "missing" not in report["left_out"], "a recording that was missing came"
    assert len([file for file in (alone / "toy/suite-toy.shifted").iterdir() if file.name.startswith("0.wav-")]) == 2
    questions = counted(tmp_path / "half/toy/suite-toy.answers.jsonl")
    run_distributed(measure, 1, config, tmp_path / "half", 1)
    assert counted(tmp_path / "half/toy/suite-toy.answers.jsonl") == questions + 2, "asked from the beginning"

    before = evaluation_inputs(config, "stage")
    assert before.startswith("toy (")
    (tmp_path / "toy.json").write_text((tmp_path / "toy.json").read_text().replace("w5 w60", "w5 w61"))
    assert evaluation_inputs(config, "stage") != before, "other rows"
    (tmp_path / "toy.yaml").write_text(SUITE.replace("w1 {question}", "w2 {question}"))
    assert evaluation_inputs(config, "stage") != before, "other words"


def compare(rank: int, world_size: int, config: Config, output: Path, expected: list[int]) -> None:
    compared: list[int] = []

    def counts(embedder: object, rows: Sequence[Row], **kwargs: Any) -> dict[str, Any]:
        compared.append(len(rows))
        return {"rows": len(rows)}

    suites.evaluate_clap = counts
    measure(rank, world_size, config, output)
    assert compared == expected


@pytest.mark.slow
def test_what_was_compared_is_not_compared_again(tmp_path: Path) -> None:
    config = suite_run(tmp_path)
    source = "{format: json, path: toy.json, columns: {audio: file, caption: caption}}"
    names = (str(tmp_path / "toy.yaml"), str(tmp_path / "other.yaml"))
    for name, rows in zip(names, (3, 2), strict=True):
        items = [{"file": f"{i}.wav", "caption": f"w{i}"} for i in range(rows)]
        Path(name).with_suffix(".json").write_text(json.dumps(items))
        text = source.replace("toy.json", Path(name).with_suffix(".json").name)
        Path(name).write_text(f"title: toy\nsource: {text}\nmetrics: [cider]\n")
    for asked, expected in ((names[:1], [3]), (names, [2]), (names, [])):
        stage = dataclasses.replace(config.curriculum["clap"], suites=asked)
        whole = dataclasses.replace(config, stage="clap", curriculum={**config.curriculum, "clap": stage})
        run_distributed(compare, 1, whole, tmp_path / "out", expected)


@pytest.mark.slow
def test_a_contrastive_stage_is_compared_on_the_recordings(tmp_path: Path) -> None:
    config = suite_run(tmp_path)
    said = [{"file": f"{i % 3}.wav", "caption": f"w{i} w1", "class": f"w{i % 3}"} for i in range(6)]
    (tmp_path / "toy.json").write_text(json.dumps(said))
    source = "{format: json, path: toy.json, columns: {audio: file, caption: caption, class: class}}"
    (tmp_path / "toy.yaml").write_text(
        f"title: toy\nsource: {source}\nmetrics: [cider]\n"
        'published: [{model: p, metric: zero_shot/accuracy, value: 40.0, source: "arXiv 2503.03983"}]\n'
    )
    stage = dataclasses.replace(config.curriculum["clap"], suites=config.curriculum["stage"].suites)
    config = dataclasses.replace(config, stage="clap", curriculum={**config.curriculum, "clap": stage})
    run_distributed(measure, 2, config, None)
    report = json.loads((config.stage_folder("clap") / "suite-toy.json").read_text())
    assert report["rows"] == 3 and "text_to_audio_r1" in report["retrieval"] and "paraphrase" in report
    assert report["published"][0]["distance"] == pytest.approx(report["zero_shot"]["accuracy"] - 40.0, abs=1e-3)

    several = [{"file": f"{i % 3}.wav", "labels": [f"w{i % 3}", "w7"]} for i in range(6)]
    (tmp_path / "toy.json").write_text(json.dumps(several))
    source = source.replace("caption: caption, class: class", "labels: labels")
    (tmp_path / "toy.yaml").write_text(f"title: toy\nsource: {source}\nmetrics: [mean_average_precision]\n")
    run_distributed(measure, 2, config, None)
    report = json.loads((config.stage_folder("clap") / "suite-toy.json").read_text())
    assert report["rows"] == 3 and report.keys().isdisjoint({"retrieval", "paraphrase"})
    # w7 is everywhere, so 100; each other label is one recording's: at the first, second or third place, or beside it.
    assert 100 * (1 + 3 / 3) / 4 <= report["zero_shot"]["mean_average_precision"] <= 100


def test_rows_about_one_recording_are_compared_as_one() -> None:
    def row(path: str, number: int, **meta: list[str]) -> Row:
        return Row(id=str(number), clips=(Clip(path=path, duration=1.0),), captions=(f"c{number}",), meta=meta)

    first, other = of_recordings([row("a", 0, labels=["x"]), row("b", 1), row("a", 2, labels=["y", "x"])])
    assert (first.captions, first.meta) == (("c0", "c2"), {"labels": ["x", "y"]})
    assert (other.captions, other.meta) == (("c1",), {})

    inside = Clip(path="0.tar", duration=1.0, offset=512, length=99)
    two = [dataclasses.replace(row("0.tar", n), clips=(dataclasses.replace(inside, offset=512 * n),)) for n in (1, 2)]
    assert len(of_recordings(two)) == 2, "a shard holds many recordings"


def test_an_answer_is_cleaned_as_its_reference_is(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(SUITE + "clean: [first_line, no_full_stop, number_words]\n")
    benchmark = load_benchmark(str(tmp_path / "toy.yaml"))
    said_back = ("2.\nso", None, "")
    one = Answered(
        id="1", group="1", skill="", prompt="?", references=("Two",), options=("Two", "one."),
        answers=said_back, probed=("two", "rain", "", "(A)", "rain", "two"),
    )  # fmt: skip
    (seen,) = said(benchmark, [one], 0)
    assert (seen.heard, seen.references, seen.options) == ("2", ("2",), ("2", "1"))
    assert said(benchmark, [one], 1)[0].heard == ""
    measured = measure_answers(benchmark, [one], Means(), shared=False)
    assert measured.scores["exact"].value == 100.0 and measured.wordings["exact"] == [100.0, 0.0, 0.0]
    assert measured.scores["likelihood"].each == [None]
    assert [measured.probes[probe]["exact"] for probe in benchmark.probes] == [100.0, 0.0, 0.0, 0.0, 0.0, 100.0]
    flipped = report_of([one], measured)["flips"]
    assert [flipped[probe]["exact"]["rate"] for probe in ("cited", "uncited")] == [100.0, 0.0]
    assert measured.probes["options"]["letter"] == 0.0, "(A) is the other option there"
    assert measure_answers(benchmark, [one], Means(), shared=True).skipped.keys() == {"nearest"}
    assert measure_answers(benchmark, [], Means(), shared=False).scores == {}


def test_behind_examples_no_probe_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are asked without examples: what changes would be the examples' doing."""
    (tmp_path / "toy.yaml").write_text(SUITE)
    asked = []

    def ask(config: Config, suites: Any, found: Any, heard: Any, progress: Any, shown: Any) -> dict[str, Any]:
        asked.append([len(suite.benchmark.probes) for suite in suites])
        return {}

    here = "megatron_af.evaluate.suites."
    monkeypatch.setattr(f"{here}_ask_and_measure", ask)
    monkeypatch.setattr(f"{here}read_questions", lambda benchmark, root: Questions())
    monkeypatch.setattr(f"{here}from_first", lambda make: make())
    monkeypatch.setattr(f"{here}_Suite.is_there", lambda suite, recordings: False)
    monkeypatch.setattr(f"{here}dist.get_rank", lambda: 1)
    stage = StageConfig(suites=(str(tmp_path / "toy.yaml"),))
    config = Config(name="tiny", output=str(tmp_path), stage="stage", curriculum={"stage": stage})
    measure_suites_behind(config, "train", [0, 4], tmp_path, tmp_path / "out")
    assert asked == [[6], [0]]
