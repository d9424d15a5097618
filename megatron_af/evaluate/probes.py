"""The same questions with something changed that must, or must not, change the answers.

    rows, root = probed("silent", questions, wording, DataRoot("data"), Path("made"))

``exchanged``: about another recording with another answer to the same question (``exchange.py``); ``silent``: about
silence of the same length; ``shifted``: about the recording with its second half first, which questions of order must
notice and those of presence must not; ``options``: with each option one place further. What silence and other
recordings still get right is what the text alone gives away; what other places of options change is a bias to places.

``cited``: about the recording with the span muted that the answer's cross-attention names (:func:`cited_span`);
``uncited``: with a random span of that length muted that shares nothing with it, or as little as it can. Where the
named span is what the answer rests on, the first turns right answers wrong and the second hardly any.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch.distributed as dist

from dali_pipes.waves import read_wave
from megatron_af.data.rows import Clip, Row
from megatron_af.data.shards import source_of
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.benchmarks import Asked
from megatron_af.evaluate.exchange import exchange
from megatron_af.files import appearing
from megatron_af.inference.listener import Listener
from megatron_af.inference.looks import Look
from megatron_af.runs.benchmarks import PROBES
from megatron_af.runs.digests import digest_value

CITING = ("cited", "uncited")
"""Probes that need to know where an answer looked."""
MUTED = 0.2
"""Part of a recording that they mute."""


def moved(options: Sequence[str]) -> tuple[str, ...]:
    """Options one place further, the last one first."""
    return (*options[-1:], *options[:-1])


def probed(
    probe: str,
    questions: Sequence[Asked],
    wording: str,
    root: DataRoot,
    made: Path,
    sample_rate: int,
    spans: Sequence[tuple[float, float]] = (),
) -> tuple[list[Row], Path | None]:
    """What is asked, and where its recordings lie; None: where they always do.

    Args:
        made: folder for recordings that are made; what lies there already is used again.
        spans: of each question, the seconds of its first recording that its answer named; for ``CITING``.
    """
    assert probe in PROBES
    if probe == "options":
        return [_with_options(one, moved(one.question.options)).worded(wording) for one in questions], None
    rows = [one.worded(wording) for one in questions]
    if probe == "exchanged":
        return [other.row for other in exchange(rows)], None
    made.mkdir(parents=True, exist_ok=True)
    if probe in CITING:
        if probe == "uncited":
            spans = [
                other_span(span, row.own_clips[0].duration, row.id)
                for span, row in zip(spans, rows, strict=True)
            ]
        muted = [
            (_made(probe, row.own_clips[0], root, made, sample_rate, span), *row.own_clips[1:])
            for row, span in zip(rows, spans, strict=True)
        ]
        return [_about(row, clips) for row, clips in zip(rows, muted, strict=True)], made
    about = [tuple(_made(probe, clip, root, made, sample_rate) for clip in row.own_clips) for row in rows]
    return [_about(row, clips) for row, clips in zip(rows, about, strict=True)], made


def _with_options(one: Asked, options: tuple[str, ...]) -> Asked:
    question = replace(one.question, options=options)
    return replace(one, row=replace(one.row, questions=(*one.row.questions[:-1], question)))


def _about(row: Row, clips: tuple[Clip, ...]) -> Row:
    """A row alone, without examples, about these clips."""
    if row.template.startswith("interleaved"):
        return replace(row, clips=clips, questions=row.questions[-1:], template="single")
    return replace(row, clips=clips)


def cited_spans(listener: Listener, questions: Sequence[Asked], wording: str) -> list[tuple[float, float]]:
    """Of each question, the seconds of its first recording that the answer in this wording looks at most; nothing of
    it where the question is too long. A collective of the listener's ranks."""
    groups = listener.groups
    own = range(groups.data_rank, len(questions), groups.data_size)
    rows = [replace(_about(row := questions[i].worded(wording), row.own_clips[:1]), id=str(i)) for i in own]
    found = {int(look.row): cited_span(look, questions[int(look.row)]) for look in listener.looks(rows)}
    shares: list[dict[int, tuple[float, float]]] = [{} for _ in range(groups.data_size)]
    dist.all_gather_object(shares, found, group=groups.data)
    spans = {place: span for share in shares for place, span in share.items()}
    return [spans.get(place, (0.0, 0.0)) for place in range(len(questions))]


def cited_span(look: Look, question: Asked) -> tuple[float, float]:
    """The ``MUTED`` part of the recording, in one piece, on which most attention of the answer's tokens lies."""
    duration = min(question.row.own_clips[0].duration, look.seconds)
    width = MUTED * duration
    weights_L = look.weights_TL.mean(0) if len(look.weights_TL) else np.zeros(len(look.token_seconds_L))
    starts = sorted({s for s in look.token_seconds_L if s <= duration - width} | {duration - width})
    mass = [
        weights_L[(look.token_seconds_L >= s - 1e-6) & (look.token_seconds_L < s + width - 1e-6)].sum() for s in starts
    ]
    start = float(starts[int(np.argmax(mass))])
    return start, start + width


def other_span(span: tuple[float, float], duration: float, seed: str) -> tuple[float, float]:
    """One as long, anywhere that is not in it: by chance, but always the same."""
    start, end = span
    width = end - start
    before, after = max(0.0, start - width), max(0.0, duration - width - end)
    if before + after == 0.0:
        other = 0.0 if start > duration - end else max(0.0, duration - width)
    else:
        drawn = random.Random(seed).uniform(0.0, before + after)
        other = drawn if drawn < before else end + drawn - before
    return other, other + width


def _made(
    probe: str, clip: Clip, root: DataRoot, made: Path, sample_rate: int, muted: tuple[float, float] = (0.0, 0.0)
) -> Clip:
    local = root.local(clip.path)
    stamp = local.stat().st_mtime_ns if local else 0  # another recording may come under the name
    said = [clip.path, clip.offset, clip.start, clip.duration, clip.digest, stamp, muted]
    piece = digest_value(said).removeprefix("sha256:")
    # A title may be as long as the file system lets names be.
    name = f"silence-{clip.duration:g}.wav" if probe == "silent" else f"{Path(clip.path).name[:40]}-{piece[:20]}.wav"
    if not (made / name).is_file():
        if probe == "silent":
            wave_T = np.zeros(max(1, round(clip.duration * sample_rate)), np.float32)
        else:
            source = source_of(root, clip)
            wave_T = read_wave(source, start=clip.start, duration=clip.duration, sample_rate=sample_rate)
            if probe in CITING:
                wave_T[round(muted[0] * sample_rate) : round(muted[1] * sample_rate)] = 0.0
            else:
                wave_T = np.roll(wave_T, len(wave_T) // 2)
        with appearing(made / name) as draft:
            soundfile.write(draft, wave_T, sample_rate, format="WAV", subtype="FLOAT")
    return Clip(path=name, duration=clip.duration)
