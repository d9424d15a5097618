"""What a CLAP can do: retrieval, zero-shot classification, telling order and attributes apart, paraphrases.

    report = evaluate_clap(embedder, rows, templates=("the sound of {}",))
    print(table(report))

Every number is a percentage; ``intervals`` has the 95% bootstrap interval of those of retrieval and zero-shot classes,
by name (``retrieval/text_to_audio_r1``). Rows bring captions (all of the same meaning; the first is the original, the
others are its paraphrases) and negatives (captions of something else, in almost the same words;
``meta.negative_kinds`` may say what was changed in each). ``retrieval`` is by first captions; ``all captions`` is
retrieval where each of them asks and any of a recording's is its hit, as benchmarks of five captions do. Rows whose
captions are the same are hits of each other. Classes are ``meta.class`` of rows with one, ``meta.labels`` of rows with
several.
Shapes: N rows, T texts, C classes, J joint dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from megatron_af.data.rows import Question, Row
from megatron_af.data.templates import CLASS_PHRASES
from megatron_af.evaluate.exchange import exchange, plain_answer
from megatron_af.evaluate.intervals import interval
from megatron_af.evaluate.ranking import mean_average_precision, mean_average_precision_interval
from megatron_af.inference.embedder import ClapEmbedder

RANKS = (1, 5, 10)
ALL_CAPTIONS = "all captions"
QUERIES = 1024
"""That are compared with all candidates at a time."""


def evaluate_clap(
    embedder: ClapEmbedder, rows: Sequence[Row], *, templates: Sequence[str] = CLASS_PHRASES, class_key: str = "class"
) -> dict[str, Any]:
    """Everything the rows allow: retrieval needs captions, zero-shot ``meta[class_key]`` or ``meta.labels``, the rest
    negatives or second captions. A collective.

    Raises:
        ValueError: for rows without a clip, or with neither caption nor labels, or with other numbers of negatives and
            of their kinds, and negatives of one recording alone.
    """
    for row in rows:
        if not row.clips or not (row.captions or row.meta.get("labels")):
            raise ValueError(f"row {row.id}: an evaluation of a CLAP needs a clip, and a caption or labels")
        kinds = row.meta.get("negative_kinds", [""] * len(row.negatives))
        if not isinstance(kinds, list) or len(kinds) != len(row.negatives):
            raise ValueError(
                f"row {row.id}: expected meta.negative_kinds to list what was changed in each of its "
                f"{len(row.negatives)} negatives, got {kinds!r:.80}"
            )
    audio_NJ = embedder.audio(rows)
    report: dict[str, Any] = {"rows": len(rows)}
    if all(row.captions for row in rows):
        report |= _of_captions(embedder, rows, audio_NJ)
    classes, labels = [row.meta.get(class_key) for row in rows], [row.meta.get("labels", ()) for row in rows]
    if all(isinstance(name, str) for name in classes):
        names = sorted({str(name) for name in classes})
        truth = torch.tensor([names.index(str(name)) for name in classes])
        class_CJ = class_vectors(embedder, names, templates)
        report["zero_shot"] = zero_shot(audio_NJ, class_CJ, truth)
        right_N = (audio_NJ @ class_CJ.t()).argmax(1) == truth
        report.setdefault("intervals", {})["zero_shot/accuracy"] = _interval(right_N)
    elif all(labels):
        names = sorted({name for some in labels for name in some})
        truth_NC = torch.tensor([[name in some for name in names] for some in labels])
        similarity_NC = audio_NJ @ class_vectors(embedder, names, templates).t()
        report["zero_shot"] = {"mean_average_precision": mean_average_precision(truth_NC, similarity_NC)}
        sure = [*mean_average_precision_interval(truth_NC, similarity_NC)]
        report.setdefault("intervals", {})["zero_shot/mean_average_precision"] = sure
    return report


def _interval(hit_N: Tensor, owner_N: Tensor | None = None) -> list[float]:
    """Of the percentage of hits; ``owner_N``: the recording that each is about."""
    owners = range(len(hit_N)) if owner_N is None else owner_N.tolist()
    return [100 * bound for bound in interval(hit_N.double().tolist(), list(map(str, owners)))]


def _intervals(test: str, places: Mapping[str, Tensor], owner_T: Tensor | None = None) -> dict[str, list[float]]:
    owners = {"text_to_audio": owner_T}
    return {
        f"{test}/{name}_r{k}": _interval(place < k, owners.get(name)) for name, place in places.items() for k in RANKS
    }


def _of_captions(embedder: ClapEmbedder, rows: Sequence[Row], audio_NJ: Tensor) -> dict[str, Any]:
    """Retrieval, paraphrases and composition."""
    texts = [text for row in rows for text in (*row.captions, *row.negatives)]
    text_TJ = embedder.texts(texts)
    captions, paraphrases, negatives, at = [], [], [], 0
    for row in rows:
        end = at + len(row.captions)
        captions.append(text_TJ[at])
        paraphrases.append(text_TJ[at + 1 : end])
        negatives.append(text_TJ[end : end + len(row.negatives)])
        at = end + len(row.negatives)
    meaning_N = meanings([row.captions[0] for row in rows])
    places = places_of_truth(audio_NJ, torch.stack(captions), torch.arange(len(rows)), meaning_N)
    report: dict[str, Any] = {"retrieval": recalls(places), "intervals": _intervals("retrieval", places)}
    if any(len(p) for p in paraphrases):
        every_TJ = torch.cat([torch.cat([c[None], p]) for c, p in zip(captions, paraphrases, strict=True)])
        owner_T = torch.tensor([n for n, row in enumerate(rows) for _ in row.captions])
        places = places_of_truth(audio_NJ, every_TJ, owner_T, meanings([text for row in rows for text in row.captions]))
        report[ALL_CAPTIONS] = recalls(places)
        report["intervals"] |= _intervals(ALL_CAPTIONS, places, owner_T)
        report["paraphrase"] = paraphrase_robustness(audio_NJ, torch.stack(captions), paraphrases, meaning_N)
    if any(len(n) for n in negatives):
        kinds = [row.meta.get("negative_kinds", [""] * len(row.negatives)) for row in rows]
        report["composition"] = composition(audio_NJ, torch.stack(captions), negatives, kinds)
        # What the texts alone give away: the same test on another recording's audio.
        said = [replace(row, questions=(Question(prompt="", output=row.captions[0]),)) for row in rows]
        other_NJ = audio_NJ[[exchanged.other for exchanged in exchange(said)]]
        report["composition, other audio"] = composition(other_NJ, torch.stack(captions), negatives, kinds)
    return report


def retrieval(audio_NJ: Tensor, text_NJ: Tensor, meaning_N: Tensor | None = None) -> dict[str, float]:
    """Recall at 1, 5 and 10 from text to audio and from audio to text; pair n belongs together.

    Args:
        meaning_N: a number for what each text says; pairs of the same number are hits of each other, and a text that
            many rows share is one candidate. None: all say something else.
    """
    pairs_N = torch.arange(len(text_NJ), device=text_NJ.device)
    return recalls(places_of_truth(audio_NJ, text_NJ, pairs_N, pairs_N if meaning_N is None else meaning_N))


def recalls(places: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{name}_r{k}": 100 * (place < k).float().mean().item() for name, place in places.items() for k in RANKS}


def places_of_truth(audio_NJ: Tensor, text_TJ: Tensor, owner_T: Tensor, meaning_T: Tensor) -> dict[str, Tensor]:
    """:func:`place_of_truth` of each text, and of each recording among the texts, of which any of its own is its hit.

    Args:
        owner_T: the recording of each text.
        meaning_T: as of :func:`retrieval`; a text is a hit of all recordings that have one of the same meaning.
    """
    known_U, place_T = torch.unique(meaning_T, return_inverse=True)
    number_T = torch.arange(len(meaning_T), device=meaning_T.device)
    first_U = torch.full_like(known_U, len(meaning_T)).scatter_reduce(0, place_T, number_T, "amin")
    by_text, by_audio = [], []
    for begin in range(0, len(text_TJ), QUERIES):
        query, text = (meaning_T[begin : begin + QUERIES, None] == meaning_T).nonzero(as_tuple=True)
        similarity_QN = text_TJ[begin : begin + QUERIES] @ audio_NJ.t()
        truth_QN = torch.zeros_like(similarity_QN, dtype=torch.bool)
        truth_QN[query, owner_T[text]] = True
        by_text.append(place_of_truth(similarity_QN, truth_QN))
    for begin in range(0, len(audio_NJ), QUERIES):
        similarity_QU = audio_NJ[begin : begin + QUERIES] @ text_TJ[first_U].t()
        mine = ((owner_T >= begin) & (owner_T < begin + QUERIES)).nonzero()[:, 0]
        truth_QU = torch.zeros_like(similarity_QU, dtype=torch.bool)
        truth_QU[owner_T[mine] - begin, place_T[mine]] = True
        by_audio.append(place_of_truth(similarity_QU, truth_QU))
    return {"text_to_audio": torch.cat(by_text), "audio_to_text": torch.cat(by_audio)}


def place_of_truth(similarity_QC: Tensor, truth_QC: Tensor | None = None) -> Tensor:
    """How many wrong candidates beat the best right one of each query (without ``truth_QC``, the one on the diagonal);
    equals count half, so that a constant model is at chance."""
    if truth_QC is None:
        truth_QC = torch.eye(*similarity_QC.shape, dtype=torch.bool, device=similarity_QC.device)
    best_Q1 = similarity_QC.masked_fill(~truth_QC, -torch.inf).amax(1, keepdim=True)
    beaten_by = ((similarity_QC > best_Q1) & ~truth_QC).sum(1)
    equal = ((similarity_QC == best_Q1) & ~truth_QC).sum(1)
    return beaten_by + equal / 2


def meanings(captions: Sequence[str]) -> Tensor:
    """A number for each caption, the same for the same words, [N]."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(plain_answer(caption), len(numbers)) for caption in captions])


def composition(
    audio_NJ: Tensor, caption_NJ: Tensor, negatives: Sequence[Tensor], kinds: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Percentage of rows whose caption beats all of its negatives (``all``), and, for each kind of change, of rows
    whose caption beats all negatives of that kind."""
    right: dict[str, list[bool]] = {}
    for audio_J, caption_J, others_TJ, kind_T in zip(audio_NJ, caption_NJ, negatives, kinds, strict=True):
        won_T = (caption_J @ audio_J > others_TJ @ audio_J).tolist()
        if won_T:
            right.setdefault("all", []).append(all(won_T))
        for kind in sorted(set(kind_T) - {""}):
            own = [won for won, k in zip(won_T, kind_T, strict=True) if k == kind]
            right.setdefault(kind, []).append(all(own))
    return {kind: 100 * sum(won) / len(won) for kind, won in sorted(right.items())}


def paraphrase_robustness(
    audio_NJ: Tensor, caption_NJ: Tensor, paraphrases: Sequence[Tensor], meaning_N: Tensor | None = None
) -> dict[str, float]:
    """Text-to-audio recall of original and of paraphrased queries, over the rows that have both, and the part of it
    that paraphrasing leaves: at 1, and at 10, where fewer accidents count. ``meaning_N`` as in :func:`retrieval`."""
    meaning_N = torch.arange(len(caption_NJ), device=caption_NJ.device) if meaning_N is None else meaning_N
    truth_NN = meaning_N[:, None] == meaning_N
    having = [n for n, texts in enumerate(paraphrases) if len(texts)]
    original_N = place_of_truth(caption_NJ @ audio_NJ.t(), truth_NN)[having]
    rows = [n for n in having for _ in paraphrases[n]]
    place_T = place_of_truth(torch.cat([paraphrases[n] for n in having]) @ audio_NJ.t(), truth_NN[rows])
    report: dict[str, float] = {}
    for k in (1, 10):
        original, told_again = (100 * (place < k).float().mean().item() for place in (original_N, place_T))
        kept = 100 * told_again / original if original else 0.0
        report |= {f"original_r{k}": original, f"paraphrased_r{k}": told_again, f"kept_r{k}": kept}
    return report


def class_vectors(embedder: ClapEmbedder, names: Sequence[str], templates: Sequence[str] = CLASS_PHRASES) -> Tensor:
    """class_CJ: each name said in every template, averaged."""
    texts = [template.format(name) for name in names for template in templates]
    mean_CJ = embedder.texts(texts).view(len(names), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(mean_CJ, dim=-1)


def zero_shot(audio_NJ: Tensor, class_CJ: Tensor, truth_N: Tensor) -> dict[str, float]:
    """Accuracy, and its mean over the classes (which unequal classes do not sway)."""
    right_N = (audio_NJ @ class_CJ.t()).argmax(1) == truth_N
    by_class = [right_N[truth_N == c].float().mean().item() for c in torch.unique(truth_N).tolist()]
    return {"accuracy": 100 * right_N.float().mean().item(), "mean_class_accuracy": 100 * sum(by_class) / len(by_class)}


def table(report: dict[str, Any], title: str = "") -> Table:
    """The report as a table: a line per number."""
    grid, intervals = Table(title=title, title_justify="left"), report.get("intervals", {})
    for name in ("test", "", "95%"):
        grid.add_column(name, justify="left" if name == "test" else "right")
    for test, values in report.items():
        if isinstance(values, dict) and values is not intervals:
            grid.add_section()
            for name, value in values.items():
                between = " to ".join(f"{bound:.1f}" for bound in intervals.get(f"{test}/{name}", ()))
                grid.add_row(f"{test}: {name.replace('_', ' ')}", f"{value:.1f}%", between)
    return grid
