"""Does the text fit the audio? Filters rows and ranks candidate texts by CLAP similarity.

    kept, report = filter_rows(embedder, rows, least=0.3)
    best = rank(embedder, rows, candidates)         # candidates of each row, the most fitting first

AF1 filtered its dialogues this way, and ranked sampled answers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from megatron_af.data.rows import Row
from megatron_af.inference.embedder import ClapEmbedder
from megatron_af.prepare.mining import deciles


def text_of(row: Row) -> str:
    """What the row says about its sound: its first caption, or else all that it answers."""
    return row.captions[0] if row.captions else " ".join(question.output for question in row.questions)


def similarities(embedder: ClapEmbedder, rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
    """Cosine similarity of each row's audio with its text, [N]. A collective."""
    return (embedder.audio(rows) * embedder.texts(texts)).sum(1)


def filter_rows(embedder: ClapEmbedder, rows: Sequence[Row], *, least: float) -> tuple[list[Row], dict[str, Any]]:
    """Rows whose text is at least that similar to their audio, with ``meta.clap_similarity``; and a report.

    Rows without audio or text cannot be judged: they are dropped and counted. A collective.
    """
    judged = [row for row in rows if row.clips and text_of(row).strip()]
    scores = similarities(embedder, judged, [text_of(row) for row in judged]).tolist() if judged else []
    kept = [
        replace(row, meta={**row.meta, "clap_similarity": round(score, 4)})
        for row, score in zip(judged, scores, strict=True)
        if score >= least
    ]
    dropped = {"less similar": len(judged) - len(kept), "no audio or no text": len(rows) - len(judged)}
    return kept, {"rows": len(rows), "kept": len(kept), "dropped": dropped, "similarity_deciles": deciles(scores)}


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
