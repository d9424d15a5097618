"""How much of a stage's batches is padding, by the order of its samples and by packing; no audio is read.

    console.print(*padding_tables(config))          # tools/prepare_data.py padding

Text rows are as long as the longest of their step, and the audio keys of a row as many as those of the row with the
most in its micro-batch. One rank is counted as if it took the whole global batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import TextBatch
from megatron_af.data.rows import RowError
from megatron_af.data.sample_source import Sample, Texts, rows_of, sampler_of
from megatron_af.runs.objectives import spec_of
from megatron_af.text.tokenizer import Tokenizer

PAPER = "Audio Flamingo 2: 58% in any order, 16% in length buckets (appendix H.2)"
STEPS = 20
"""Global batches that are looked at of each order."""


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Parts of all positions that hold nothing, 0 to 1."""

    text: float
    audio: float


def padding_tables(config: Config) -> Iterator[Table]:
    """A table for every stage that answers, of its order with and without length buckets, packed and not.

    Raises what :func:`rows_of` raises.
    """
    tokenizer = Tokenizer.load(config.data.tokenizer)
    for name, stage in config.curriculum.items():
        if stage.objective != "answer":
            continue
        table = Table("lengths in a batch", "text", "audio", title=f"padding in stage {name}", caption=PAPER)
        at = replace(config, stage=name)
        for packed in sorted({0, stage.pack_tokens}):
            for ends in dict.fromkeys(((), stage.length_buckets or doubling(stage.max_windows))):
                ordered = replace(stage, pack_tokens=packed, length_buckets=ends)
                found = padding_of(at, ordered, spec_of(ordered).texts(at, ordered, tokenizer))
                told = f"length_buckets {list(ends)}" if ends else "any"
                told += f", rows packed to {packed}" if packed else ""
                told += " (as configured)" if ordered == stage else ""
                table.add_row(told, f"{found.text:.1%}", f"{found.audio:.1%}")
        yield table


def doubling(most: int) -> tuple[int, ...]:
    """Buckets whose ends double, below ``most`` windows: half of a row's keys at most are then padding."""
    return tuple(1 << power for power in range((most - 1).bit_length()))


def padding_of(config: Config, stage: StageConfig, texts: Texts[Any, TextBatch], *, steps: int = STEPS) -> Padding:
    """Of some ``steps`` global batches, evenly spread over the first epoch; rows that cannot be used are left out.

    Raises what :func:`rows_of` raises.
    """
    text = text_room = keys = key_room = 0
    for batch, windows in _batches(config, stage, texts, steps):
        text += batch.num_tokens
        for rows in batch.rows:
            heard = [sum(windows[clip] for clip in clips) for clips in rows.clips]
            text_room += rows.ids_BS.numel()
            keys += sum(heard)
            key_room += len(heard) * max(heard)
    return Padding(text=1 - text / max(1, text_room), audio=1 - keys / max(1, key_room))


def _batches(
    config: Config, stage: StageConfig, texts: Texts[Any, TextBatch], steps: int
) -> Iterator[tuple[TextBatch, Sequence[int]]]:
    """Global batches, and the windows of their clips."""
    rows, front_end = rows_of(config, stage), config.model.front_end
    sampler, size = sampler_of(config, stage, rows), stage.global_batch_samples
    last = max(1, sampler.epoch_samples(0) // size)
    for step in range(0, last, max(1, last // steps)):
        samples: list[Sample[Any]] = []
        for draw in map(sampler.draw, range(step * size, (step + 1) * size)):
            try:
                row, said = texts.of(rows[draw.dataset][draw.row], draw)
                samples.append(Sample(row=row, dataset=sampler.names.index(draw.dataset), text=said))
            except RowError:
                continue
        windows: list[int] = []
        heard: list[tuple[int, ...]] = []
        for sample in samples:
            heard.append(tuple(range(len(windows), len(windows) + len(sample.row.clips))))
            windows += [front_end.windows_of(clip.duration, stage.max_windows) for clip in sample.row.clips]
        yield texts.collate(samples, heard, windows), windows
