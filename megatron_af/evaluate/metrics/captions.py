"""Captions' metrics as the field reports them, through pycocoevalcap (BLEU, ROUGE-L, CIDEr, METEOR) and aac-metrics.

Texts are cut into words as the Penn Treebank tokenizer that COCO's evaluation runs in Java does it (lower case, ``'s``
and ``n't`` apart, no punctuation), so that no Java is needed for what needs none itself. METEOR runs Java; SPICE, which
SPIDEr is the mean of with CIDEr, and FENSE download models. Who is not there is skipped by name.
"""

import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_af.evaluate.answered import Said
from megatron_af.evaluate.metrics.base import Metric, Scores

_WORD = re.compile(r"[a-z0-9]+(?:[-'.,/:][a-z0-9]+)*|[^\W_]+|[()\[\]{}]")
_APART = re.compile(r"(n't|'s|'m|'d|'re|'ve|'ll)$")
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
"""The tokenizer names brackets, and COCO's list of punctuation to drop has the names in capitals: they stay."""
INSTALL = "pip install 'megatron-af[captions]'"
NO_JAVA = "needs Java: install a runtime, such as openjdk-17"


def words(text: str) -> list[str]:
    """A caption's words; ``the dog's bark, high-pitched.`` is the dog 's bark high-pitched."""
    found: list[str] = []
    for word in _WORD.findall(text.lower().replace("’", "'")):
        if word == "cannot":
            found += ["can", "not"]
        elif (end := _APART.search(word)) and end.start():
            found += [word[: end.start()], end[0]]
        else:
            found.append(BRACKETS.get(word, word))
    return found


class CaptionMetric(Metric):
    """Compares each answer with all captions of its recording."""

    def missing(self) -> str:
        return "" if find_spec("pycocoevalcap") else f"needs pycocoevalcap: {INSTALL}"

    def compare(self, scorer: Any, said: Sequence[Said]) -> tuple[Any, Any]:
        """A scorer of pycocoevalcap's number for all, and for each."""
        references = {i: [" ".join(words(text)) for text in s.references] for i, s in enumerate(said)}
        answers = {i: [" ".join(words(s.heard))] for i, s in enumerate(said)}
        value, each = scorer.compute_score(references, answers)
        return value, each


class Bleu(CaptionMetric):
    """BLEU-1 to BLEU-4 of the whole corpus, from 0 to 1."""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        from pycocoevalcap.bleu.bleu import Bleu as Scorer

        references = {i: [" ".join(words(text)) for text in s.references] for i, s in enumerate(said)}
        answers = {i: [" ".join(words(s.heard))] for i, s in enumerate(said)}
        values, each = Scorer(4).compute_score(references, answers, verbose=0)
        return {
            f"bleu_{n}": Scores(value=float(value), each=tuple(map(float, of_each)))
            for n, (value, of_each) in enumerate(zip(values, each, strict=True), start=1)
        }


class RougeL(CaptionMetric):
    """ROUGE-L, from 0 to 1."""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        from pycocoevalcap.rouge.rouge import Rouge

        value, each = self.compare(Rouge(), said)
        return {"rouge_l": Scores(value=float(value), each=tuple(map(float, each)))}


class Cider(CaptionMetric):
    """CIDEr (its D form, as COCO's code computes it); its rarity of words is that of the benchmark's own captions."""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        from pycocoevalcap.cider.cider import Cider as Scorer

        value, each = self.compare(Scorer(), said)
        return {"cider": Scores(value=float(value), each=tuple(map(float, each)))}


class Meteor(CaptionMetric):
    """METEOR, from 0 to 1."""

    def missing(self) -> str:
        return super().missing() or ("" if shutil.which("java") else f"METEOR {NO_JAVA}")

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        from pycocoevalcap.meteor.meteor import Meteor as Scorer

        scorer = Scorer()
        try:
            value, each = self.compare(scorer, said)
        except ValueError as error:
            raise OSError(f"METEOR's Java program gave no numbers ({error})") from error
        finally:
            scorer.meteor_p.kill()
            if scorer.lock.locked():  # it failed, and its end waits for the lock
                scorer.lock.release()
        return {"meteor": Scores(value=float(value), each=tuple(map(float, each)))}


class Spider(Cider):
    """SPIDEr, the mean of CIDEr and SPICE."""

    of_wordings = False

    def missing(self) -> str:
        if problem := super().missing():
            return problem
        if not shutil.which("java"):
            return f"SPICE {NO_JAVA}"
        import pycocoevalcap.spice

        libraries = Path(pycocoevalcap.spice.__file__).parent / "lib"
        if not list(libraries.glob("stanford-corenlp-*.jar")):
            return "SPICE needs Stanford CoreNLP 3.6.0: python -m pycocoevalcap.spice.get_stanford_models downloads it"
        return ""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        from pycocoevalcap.spice.spice import Spice

        spice, of_each = self.compare(Spice(), said)
        cider = super().score(said)["cider"]
        each = tuple((float(one["All"]["f"]) + float(c or 0)) / 2 for one, c in zip(of_each, cider.each, strict=True))
        return {"spider": Scores(value=(float(spice) + cider.value) / 2, each=each)}


class Fense(Metric):
    """FENSE: sentence-BERT's similarity, less where an answer is not fluent; from 0 to 1."""

    of_wordings = False

    def missing(self) -> str:
        if not find_spec("aac_metrics"):
            return "needs aac-metrics: pip install aac-metrics, then aac-metrics-download for its models"
        return ""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        from aac_metrics.functional import fense

        _, each = fense([s.heard for s in said], [list(s.references) for s in said])
        values = tuple(map(float, each["fense"]))
        return {"fense": Scores(value=sum(values) / len(values), each=values)}
