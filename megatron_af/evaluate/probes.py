"""The same questions with something changed that must, or must not, change the answers.

    rows, root = probed("silent", questions, wording, DataRoot("data"), Path("made"))

``exchanged``: about another recording with another answer to the same question (``exchange.py``); ``silent``: about
silence of the same length; ``shifted``: about the recording with its second half first, which questions of order must
notice and those of presence must not; ``options``: with each option one place further. What silence and other
recordings still get right is what the text alone gives away; what other places of options change is a bias to places.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from dali_pipes.waves import read_wave
from megatron_af.data.rows import Clip, Row
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.benchmarks import Asked
from megatron_af.evaluate.exchange import exchange
from megatron_af.runs.benchmarks import PROBES


def moved(options: Sequence[str]) -> tuple[str, ...]:
    """Options one place further, the last one first."""
    return (*options[-1:], *options[:-1])


def probed(
    probe: str, questions: Sequence[Asked], wording: str, root: DataRoot, made: Path, sample_rate: int
) -> tuple[list[Row], Path | None]:
    """What is asked, and where its recordings lie; None: where they always do.

    Args:
        made: folder for recordings that are made; what lies there already is used again.
    """
    assert probe in PROBES
    if probe == "options":
        return [_with_options(one, moved(one.question.options)).worded(wording) for one in questions], None
    rows = [one.worded(wording) for one in questions]
    if probe == "exchanged":
        return [other.row for other in exchange(rows)], None
    made.mkdir(parents=True, exist_ok=True)
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


def _made(probe: str, clip: Clip, root: DataRoot, made: Path, sample_rate: int) -> Clip:
    name = f"{clip.path.replace('/', '_')}-{clip.offset}-{clip.start:g}-{clip.duration:g}.wav"
    if probe == "silent":
        name = f"silence-{clip.duration:g}.wav"
    if not (made / name).is_file():
        if probe == "silent":
            wave_T = np.zeros(max(1, round(clip.duration * sample_rate)), np.float32)
        else:
            source = root.read(clip.path)[clip.offset : clip.offset + clip.length] if clip.length else (
                root.local(clip.path) or root.read(clip.path)
            )  # fmt: skip
            wave_T = read_wave(source, start=clip.start, duration=clip.duration, sample_rate=sample_rate)
            wave_T = np.roll(wave_T, len(wave_T) // 2)
        soundfile.write(made / f".{name}.partial", wave_T, sample_rate, format="WAV", subtype="FLOAT")
        (made / f".{name}.partial").rename(made / name)
    return Clip(path=name, duration=clip.duration)
