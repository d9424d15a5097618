"""A free answer is taken for the label whose text is most similar: how Audio Flamingo 2 scored classification.

``nearest`` and ``mean_average_precision`` use the text tower of the run's CLAP (``retrieval.stage``), ``f1_approx`` a
sentence-BERT, which counts two labels as one above a similarity of 0.8 (Audio Flamingo 1).
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_af.evaluate.answered import Said
from megatron_af.evaluate.metrics.base import Metric, Scores, percent
from megatron_af.evaluate.ranking import mean_average_precision, mean_average_precision_interval

SAME = 0.8
"""Similarity above which labels are the same (Audio Flamingo 1)."""
_NO_CLAP = "retrieval.stage names no trained contrastive stage, whose text tower says which label is nearest"


class _ByText(Metric):
    collective = True
    of_wordings = False

    def missing(self) -> str:
        return "" if self.means.embed else _NO_CLAP

    def vectors(self, said: Sequence[Said]) -> tuple[list[str], Tensor, Tensor]:
        """All options, and the vectors of answers and of options, [A, J] and [O, J]."""
        assert self.means.embed is not None
        options = list(dict.fromkeys(option for s in said for option in s.options))
        return options, self.means.embed([s.heard.strip() or "." for s in said]), self.means.embed(options)


class Nearest(_ByText):
    """The option nearest to the answer is the right one; unparseable: an empty answer, or one without options."""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        options, answer_AJ, option_OJ = self.vectors(said)
        place = {option: number for number, option in enumerate(options)}
        each: list[float | None] = []
        for s, answer_J in zip(said, answer_AJ, strict=True):
            if not s.heard.strip() or not s.options:
                each.append(None)
                continue
            own_OJ = option_OJ[[place[option] for option in s.options]]  # of its own: benchmarks have many thousands
            each.append(float(s.options[int((own_OJ @ answer_J).argmax())] in s.references))
        return {"nearest": percent(each)}


class MeanAveragePrecision(_ByText):
    """Recordings are ranked for each label by how similar their answer is to it."""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        options, answer_AJ, option_OJ = self.vectors(said)
        similarity_AO = answer_AJ @ option_OJ.t()
        truth_AO = torch.tensor([[option in (s.labels or s.references) for option in options] for s in said])
        sure = mean_average_precision_interval(truth_AO, similarity_AO)
        return {"mean_average_precision": Scores(value=mean_average_precision(truth_AO, similarity_AO), interval=sure)}


class ApproximateF1(Metric):
    """F1 of the labels that an answer lists, where labels of a similar meaning are the same; in percent."""

    of_wordings = False

    def missing(self) -> str:
        if not self.means.sentences:
            return "evaluation.sentence_model is empty: name a sentence-BERT, a folder or a hub name"
        return ""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        from megatron_af.evaluate.metrics.sentences import sentence_vectors

        true = [[label.lower() for label in s.labels or s.references] for s in said]
        known = {label.lower() for s in said for label in (*s.options, *s.labels)}
        whole = sorted((label for label in known if len(_parts(label)) > 1), key=len, reverse=True)
        listed = [_listed(s.heard, whole) for s in said]
        texts = list(dict.fromkeys(text for some in (*listed, *true) for text in some))
        place = {text: number for number, text in enumerate(texts)}
        vector_TJ = sentence_vectors(self.means.sentences, texts)
        each = []
        for answers, labels in zip(listed, true, strict=True):
            same_AL = vector_TJ[[place[a] for a in answers]] @ vector_TJ[[place[x] for x in labels]].t() > SAME
            hit = int(same_AL.any(1).sum()), int(same_AL.any(0).sum())
            precision = hit[0] / len(answers) if answers else 0.0
            recall = hit[1] / len(labels)
            each.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        return {"f1_approx": percent(each)}


def _listed(answer: str, whole: Sequence[str]) -> list[str]:
    """What an answer lists; ``whole``: labels that hold a comma or "and", such as "male speech, man speaking"."""
    rest, found = answer.lower(), list[str]()
    if whole:
        labels = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, whole))})(?!\w)")
        found, rest = labels.findall(rest), labels.sub(",", rest)
    return [*found, *_parts(rest)]


def _parts(text: str) -> list[str]:
    parts = re.split(r"[,;\n]|(?:^|\s)and(?=\s)", text)
    return [bare for part in parts if (bare := part.strip(" ."))]
