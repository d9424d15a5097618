"""Where an answer looks: what is kept of it, and its pictures.

    looks = listener.looks(fixed_samples(rows, 4))        # listener.py
    draw(looks, folder, "attention-test")
    write_looks(looks, folder / "attention-test.json")    # for reports

L audio tokens, T answer tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_af.data.rows import Row
from megatron_af.files import write
from megatron_af.foreign import read_json
from megatron_af.tracking.pictures import attention_over_time

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Look:
    """One answer and where each of its tokens looked."""

    prompt: str
    tokens: tuple[str, ...]
    weights_TL: Floats
    """Attention of the position that says each token, mean over blocks and heads; rows sum to 1."""
    token_seconds_L: Floats
    """When each audio token's part of the clip begins."""
    seconds: float
    """Length of the windows that the model heard."""
    row: str = ""
    """Id of the row that was asked, where it is one of a data set."""


def fixed_samples(rows: Sequence[Row], count: int) -> list[Row]:
    """The same rows every time: the first ones about one recording, each with its first question."""
    heard = [row for row in rows if len(row.clips) == 1 and row.questions]
    return [replace(row, questions=row.questions[:1], template="single") for row in heard[:count]]


def draw(looks: Sequence[Look], folder: Path, stem: str) -> None:
    """Write a picture of each answer, ``STEM-1.png`` and so on, in place of those of an earlier checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}-[0-9]*.png"):
        old.unlink()
    for number, look in enumerate(looks, 1):
        figure = attention_over_time(
            look.weights_TL, list(look.tokens), look.seconds, title=look.prompt, order=look.token_seconds_L
        )
        figure.savefig(folder / f"{stem}-{number}.png")


def write_looks(looks: Sequence[Look], file: Path) -> None:
    """Keep the numbers that are drawn, for whoever draws them otherwise (``megatron_af.report``)."""
    told = [
        {**asdict(look), "weights_TL": np.round(look.weights_TL, 5).tolist()}
        | {"token_seconds_L": np.round(look.token_seconds_L, 4).tolist()}
        for look in looks
    ]
    write(file, json.dumps(told))


def read_looks(file: Path) -> list[Look]:
    """What :func:`write_looks` kept."""
    return [
        Look(
            **told
            | {name: np.array(told[name]) for name in ("weights_TL", "token_seconds_L")}
            | {"tokens": tuple(told["tokens"])}
        )
        for told in read_json(file)
    ]
