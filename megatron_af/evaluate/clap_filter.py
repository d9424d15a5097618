"""Does the text fit the audio, and does another row have nearly the same? Filters rows and ranks candidate texts by
CLAP similarity.

    wanted = Wanted(least=0.3, most_alike=0.98)
    kept, report, dropped = filtered(judged(embedder, rows, wanted), wanted)
    best = rank(embedder, rows, candidates)         # candidates of each row, the most fitting first

AF1 filtered its dialogues this way, and ranked sampled answers; AF2 chose LongAudio's videos by clusters of what is
said of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_af.data.rows import Row
from megatron_af.inference.embedder import ClapEmbedder
from megatron_af.prepare.mining import deciles
from megatron_af.retrieval.variety import drawn, nearest_kept


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which rows stay; None: whatever it is. What comes first is done first."""

    least: float | None = None
    """Similarity of a row's text to its audio."""
    most_alike: float | None = None
    """Similarity of a recording to another one that stays; rows about one piece of a recording stay or go together."""
    most_alike_text: float | None = None
    """Similarity of a row's text to another one that stays."""
    draw: int | None = None
    """Rows that stay in the end, as many from each cluster of texts."""
    seed: int = 0


def text_of(row: Row) -> str:
    """What the row says about its sound: its first caption, or else all that it answers, or else its labels."""
    if row.captions:
        return row.captions[0]
    said = [question.output for question in row.questions] or [text for span in row.spans for text in span.captions]
    return " ".join(said)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Rows with the vectors of what is asked of them, [N, J] or nothing."""

    rows: list[Row]
    audio_NJ: NDArray[np.float32]
    text_NJ: NDArray[np.float32]
    unfit: list[Row]
    """Without audio or text: they cannot be judged."""


def judged(embedder: ClapEmbedder, rows: Sequence[Row], wanted: Wanted) -> Judged:
    """A collective."""
    by_sound = wanted.least is not None or wanted.most_alike is not None
    by_text = any(value is not None for value in (wanted.least, wanted.most_alike_text, wanted.draw))
    fit = [bool((row.clips or not by_sound) and (text_of(row).strip() or not by_text)) for row in rows]
    able = [row for row, is_fit in zip(rows, fit, strict=True) if is_fit]
    return Judged(
        rows=able,
        audio_NJ=embedder.audio(able).numpy() if by_sound and able else np.empty((len(able), 0), np.float32),
        text_NJ=(
            embedder.texts([text_of(row) for row in able]).numpy()
            if by_text and able
            else np.empty((len(able), 0), np.float32)
        ),
        unfit=[row for row, is_fit in zip(rows, fit, strict=True) if not is_fit],
    )


def filtered(judged: Judged, wanted: Wanted) -> tuple[list[Row], dict[str, Any], list[dict[str, Any]]]:
    """Rows that are wanted, with ``meta.clap_similarity`` where their text was compared with their audio; a report; and
    of each other row why it was dropped, and which one is like it."""
    rows, report = list(judged.rows), dict[str, Any]()
    dropped = [{"id": row.id, "reason": "no audio or no text"} for row in judged.unfit]
    left = np.arange(len(rows))

    def drop(why: str, places: Sequence[int], **more: Sequence[Any]) -> None:
        nonlocal left
        for number, place in enumerate(places):
            dropped.append({"id": rows[place].id, "reason": why, **{name: some[number] for name, some in more.items()}})
        left = np.setdiff1d(left, places)

    def drop_alike(why: str, vector_NJ: NDArray[np.float32], same_N: Sequence[object], most: float, name: str) -> None:
        """Of things T that may belong to several rows, ``same_N`` for each row that is left."""
        first = dict[object, int]()
        thing_N = [first.setdefault(same, len(first)) for same in same_N]
        row_T = left[np.unique(thing_N, return_index=True)[1]].tolist()
        like_T, similarity_T = nearest_kept(vector_NJ[row_T], most)
        report[name] = deciles([float(value) for value in similarity_T[1:]])
        gone = [number for number, thing in enumerate(thing_N) if similarity_T[thing] > most]
        drop(
            why,
            [int(left[number]) for number in gone],
            like=[rows[row_T[like_T[thing_N[number]]]].id for number in gone],
            similarity=[round(float(similarity_T[thing_N[number]]), 4) for number in gone],
        )

    if wanted.least is not None:
        score_N = (judged.audio_NJ * judged.text_NJ).sum(1).tolist()
        report["similarity_deciles"] = deciles(score_N)
        rows = [
            replace(row, meta={**row.meta, "clap_similarity": round(score, 4)})
            for row, score in zip(rows, score_N, strict=True)
        ]
        drop("less similar", [place for place, score in enumerate(score_N) if score < wanted.least])
    if wanted.most_alike is not None and len(left):
        pieces = [rows[place].clips for place in left]
        drop_alike("sounds like another", judged.audio_NJ, pieces, wanted.most_alike, "sound_deciles")
    if wanted.most_alike_text is not None and len(left):
        drop_alike("says what another says", judged.text_NJ, left.tolist(), wanted.most_alike_text, "text_deciles")
    if wanted.draw is not None and len(left):
        chosen, cluster_N = drawn(judged.text_NJ[left], wanted.draw, wanted.seed)
        taken = Counter(cluster_N[chosen].tolist())
        sizes = Counter(cluster_N.tolist()).most_common()
        report["clusters"] = [{"rows": size, "drawn": taken[cluster]} for cluster, size in sizes]
        drop("not drawn", np.delete(left, chosen).tolist())
    counts = Counter(entry["reason"] for entry in dropped)
    report = {"rows": len(rows) + len(judged.unfit), "kept": len(left), "dropped": dict(counts), **report}
    return [rows[place] for place in left], report, dropped


def rank(
    embedder: ClapEmbedder, rows: Sequence[Row], candidates: Sequence[Sequence[str]]
) -> list[list[tuple[float, str]]]:
    """Similarity and text of every candidate, the most fitting first. A collective."""
    audio_NJ = embedder.audio(rows)
    text_TJ = embedder.texts([text for texts in candidates for text in texts])
    ranked, at = [], 0
    for audio_J, texts in zip(audio_NJ, candidates, strict=True):
        scores = (text_TJ[at : at + len(texts)] @ audio_J).tolist()
        ranked.append(sorted(zip(scores, texts, strict=True), key=lambda pair: -pair[0]))
        at += len(texts)
    return ranked
