"""Captions' metrics are those of COCO's evaluation code, words cut without Java as it cuts them."""

import gc
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import ImportConfig
from megatron_af.evaluate.answered import Answered, Said
from megatron_af.evaluate.metrics import captions
from megatron_af.evaluate.metrics.base import Means
from megatron_af.evaluate.metrics.captions import Bleu, Cider, Fense, Meteor, RougeL, Spider, words
from megatron_af.evaluate.suites import measure_answers
from megatron_af.runs.benchmarks import Benchmark

pytest.importorskip("pycocoevalcap", reason="pip install 'megatron-af[captions]'")

ANSWERS = [
    "A dog barks, and then a high-pitched bell rings.",
    "It doesn't rain; someone's engine cannot start!",
    "Wind blows (hard) in the trees",
    "rain",
]
REFERENCES = [
    ["A dog barking is followed by a high-pitched bell.", "a dog barks and a bell rings"],
    ["An engine can't start", "Somebody's engine doesn't start: it's raining."],
    ["The wind is blowing through trees.", "strong wind in the trees", "It's 3.5 minutes of wind..."],
    ["Birds sing while people talk."],
]
SAID = [
    Said(id=str(i), prompt="?", references=tuple(r), heard=a)
    for i, (a, r) in enumerate(zip(ANSWERS, REFERENCES, strict=True))
]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="no Java")
def test_words_are_those_of_the_treebank_tokenizer() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [*ANSWERS, *(text for some in REFERENCES for text in some)]
    cut = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert [" ".join(words(text)) for text in texts] == [cut[i][0] for i in range(len(texts))]


def test_numbers_are_those_of_the_reference_code() -> None:
    from pycocoevalcap.bleu.bleu import Bleu as CocoBleu
    from pycocoevalcap.cider.cider import Cider as CocoCider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {i: [" ".join(words(text)) for text in some] for i, some in enumerate(REFERENCES)}
    answers = {i: [" ".join(words(text))] for i, text in enumerate(ANSWERS)}
    cider, each = CocoCider().compute_score(references, answers)
    found = Cider(Means()).score(SAID)["cider"]
    assert found.value == pytest.approx(cider) and list(found.each) == pytest.approx(list(each))
    assert 0.3 < cider < 3 and found.each[3] == 0.0
    assert RougeL(Means()).score(SAID)["rouge_l"].value == pytest.approx(Rouge().compute_score(references, answers)[0])
    bleu = CocoBleu(4).compute_score(references, answers, verbose=0)[0]
    assert [s.value for s in Bleu(Means()).score(SAID).values()] == pytest.approx(bleu)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="no Java")
def test_meteor_is_measured_where_there_is_java() -> None:
    same = [Said(id="1", prompt="?", references=("a dog barks loudly",), heard="a dog barks loudly"), SAID[3]]
    right, wrong = Meteor(Means()).score(same)["meteor"].each
    assert right == 1.0 and wrong == 0.0


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Stanford CoreNLP" in Spider(Means()).missing() or "needs Java" in Spider(Means()).missing()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert Meteor(Means()).missing().startswith("METEOR needs Java: install a runtime")
    assert Spider(Means()).missing().startswith("SPICE needs Java")
    assert Cider(Means()).missing() == ""

    def nowhere(name: str) -> Any:
        return None

    monkeypatch.setattr(captions, "find_spec", nowhere)
    for metric in (Bleu, RougeL, Cider, Meteor, Spider):
        assert metric(Means()).missing() == "needs pycocoevalcap: pip install 'megatron-af[captions]'"
    assert "needs aac-metrics" in Fense(Means()).missing()


@pytest.mark.slow  # starts it
def test_a_java_that_does_not_run_costs_its_metrics_and_hangs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(Spider, "missing", lambda self: "")  # whatever is downloaded
    spice = types.SimpleNamespace(Spice=lambda: types.SimpleNamespace(compute_score=runs_java))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", spice)
    one = Answered(id="1", group="1", skill="", prompt="?", references=("a dog",), answers=("a dog",))
    metrics = ("meteor", "spider", "exact")
    benchmark = Benchmark(title="x", source=ImportConfig(format="rows", path="x"), metrics=metrics)
    measured = measure_answers(benchmark, [one], Means(), shared=False)
    gc.collect()
    assert set(measured.scores) == {"exact"} and set(measured.skipped) == {"meteor", "spider"}


def runs_java(references: object, answers: object) -> None:
    """As SPICE does."""
    subprocess.check_call(["java", "-jar", "spice.jar"])
