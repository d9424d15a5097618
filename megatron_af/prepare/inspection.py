"""A data set to look at and listen to: one HTML page without any other file, and the same in the terminal.

    samples = look(config, "clotho", count=4)       # tools/prepare_data.py inspect
    Path("clotho.html").write_text(page(statistics, samples))

A sample shows what training gets: its waveform with the borders of the windows, the mel of each window, and its text
with the supervised tokens marked.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.panel import Panel
from rich.text import Text
from torch import Tensor

from dali_pipes.waves import AudioError
from megatron_af.config import Config, FrontEndConfig, StageConfig
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Row
from megatron_af.data.sample_source import Shown
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.parallel.device import Device
from megatron_af.prepare.statistics import Statistics
from megatron_af.runs.objectives import spec_of
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.web_page import page as html_page
from megatron_af.web_page import picture, sound

SILENT_DB = -99.9
_BARS = " ▁▂▃▄▅▆▇█"
_STYLE = """
.text .on { background: color-mix(in srgb, var(--good) 25%, transparent) } .special { color: var(--c2) }
"""


@dataclass(frozen=True, kw_only=True)
class HeardClip:
    """A clip as training hears it."""

    path: str
    wave_T: NDArray[np.float32]
    mel_WFM: Tensor
    problem: str


@dataclass(frozen=True, kw_only=True)
class SeenSample:
    """A row as training gets it."""

    row: Row
    clips: tuple[HeardClip, ...]
    segments: tuple[Shown, ...]
    """What the objectives of the stages that take it read."""


def look(config: Config, name: str, *, tokenizer: Tokenizer, device: Device, count: int) -> list[SeenSample]:
    """Rows of a data set, evenly spaced, with their audio and text."""
    # Where no stage takes the data set yet, as one that answers would get it.
    taking = [stage for stage in config.curriculum.values() if name in stage.blend] or [StageConfig(max_windows=30)]
    loader = ClipLoader(config, max_windows=max(stage.max_windows for stage in taking), device=device)
    longest = {stage.objective: stage for stage in sorted(taking, key=lambda stage: stage.max_text_tokens)}
    texts = [spec_of(stage).texts(config, stage, tokenizer) for stage in longest.values()]
    rows = open_rows(DataRoot(config.data.root), config.data.datasets[name].manifest)
    samples = []
    for place in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int).tolist():
        row = rows[place]
        heard = tuple(_hear(loader, row, i) for i in range(len(row.clips)))
        segments = dict.fromkeys(segment for side in texts for segment in side.shown(row))
        samples.append(SeenSample(row=row, clips=heard, segments=tuple(segments)))
    return samples


def panels(samples: Sequence[SeenSample], front_end: FrontEndConfig) -> list[Panel]:
    """Samples for the terminal; supervised tokens are underlined."""
    out = []
    for sample in samples:
        text = Text()
        for clip in sample.clips:
            seconds, windows = len(clip.wave_T) / front_end.sample_rate, len(clip.mel_WFM)
            text.append(f"{clip.path}  {seconds:.1f} s, {windows} window{'s' * (windows > 1)}  {clip.problem}\n", "dim")
            text.append(_bars(clip.wave_T, 72) + "\n", "cyan")
        for segment in sample.segments:
            for token, supervised, special in segment:
                style = ("yellow " if special else "") + ("bold green underline" if supervised else "")
                text.append(token.replace("\n", "↵"), style.strip() or None)
            text.append("\n")
        out.append(Panel(text, title=f"{sample.row.id}  {sample.row.task}  {sample.row.template}", title_align="left"))
    return out


def page(statistics: Statistics, samples: Sequence[SeenSample], front_end: FrontEndConfig) -> str:
    """One HTML page: statistics with histograms, then samples with pictures and playable audio."""
    parts = [f"<h1>{html.escape(statistics.name)}</h1>", _overview(statistics)]
    for sample in samples:
        parts.append(
            f"<h2>{html.escape(sample.row.id)}</h2><p>{html.escape(sample.row.task)} · {sample.row.template}</p>"
        )
        for clip in sample.clips:
            problem = f" <b>{html.escape(clip.problem)}</b>" if clip.problem else ""
            parts.append(f"<p>{html.escape(clip.path)}{problem}</p>")
            if len(clip.wave_T):
                parts.append(sound(clip.wave_T, front_end.sample_rate))
                parts.append(picture(_draw(clip, front_end), "waveform and mel"))
        for segment in sample.segments:
            spans = "".join(
                f'<span class="{"on " * on}{"special" * special}">{html.escape(token)}</span>' if on or special
                else html.escape(token)
                for token, on, special in segment
            )  # fmt: skip
            parts.append(f'<div class="text">{spans}</div>')
    return html_page(statistics.name, parts, _STYLE)


def _hear(loader: ClipLoader, row: Row, index: int) -> HeardClip:
    clip = row.clips[index]
    mel_WFM, bad = loader.load([clip])
    try:
        wave_T = loader.wave(clip)
    except (AudioError, StorageError):
        wave_T = np.zeros(0, np.float32)
    return HeardClip(path=clip.path, wave_T=wave_T, mel_WFM=mel_WFM.cpu(), problem=bad.get(0, ""))


def _bars(wave_T: NDArray[np.float32], width: int) -> str:
    if not len(wave_T):
        return ""
    levels = np.array([np.abs(part).max() for part in np.array_split(wave_T, min(width, len(wave_T)))])
    return "".join(_BARS[int(level * (len(_BARS) - 1) + 0.5)] for level in levels / max(1e-9, levels.max()))


def _overview(statistics: Statistics) -> str:
    s = statistics
    figure = Figure(figsize=(10, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if s.seconds:
        left.hist(s.seconds, bins=40, color="#4878a8")
    left.set(title="clips", xlabel="seconds")
    if s.tokens:
        right.hist([s.tokens, s.supervised], bins=40, color=["#b0b0b0", "#5a9a5a"], label=["all", "supervised"])
        right.legend()
    right.set(title="segments of text", xlabel="tokens")
    for axes in (left, right):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    common = "".join(f"<tr><td>{html.escape(answer[:80])}<td>{count:,}" for answer, count in s.answers.most_common(10))
    return (
        f"<p>{s.rows:,} rows, {s.hours:,.3g} hours of audio, {s.text_only:,} of text only.</p>"
        f'{picture(figure, "lengths")}<h3>Commonest answers</h3><table>{common}</table>'
    )


def _draw(clip: HeardClip, front_end: FrontEndConfig) -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    rate = front_end.sample_rate
    envelope = np.array([[part.min(), part.max()] for part in np.array_split(clip.wave_T, min(2000, len(clip.wave_T)))])
    upper.fill_between(np.linspace(0, len(clip.wave_T) / rate, len(envelope)), envelope[:, 0], envelope[:, 1], lw=0.3)
    windows = len(clip.mel_WFM)
    for window in range(windows):
        begin = window * front_end.stride_samples / rate
        upper.axvspan(
            begin, begin + front_end.window_seconds, color="#e08030", alpha=0.10 if window % 2 else 0.22, lw=0
        )
    upper.set(xlim=(0, ((windows - 1) * front_end.stride_samples + front_end.window_samples) / rate), xlabel="seconds")
    mel_MF = clip.mel_WFM.flatten(0, 1).T.numpy()
    heard = mel_MF[mel_MF > SILENT_DB]  # the padding of the last window would take half of the colours
    lowest = np.quantile(heard, 0.02) if heard.size else SILENT_DB
    lower.imshow(mel_MF, origin="lower", aspect="auto", interpolation="nearest", vmin=lowest)
    for window in range(1, windows):
        lower.axvline(window * front_end.window_frames, color="w", lw=0.8)
    lower.set(xlabel="frames, window after window", ylabel="mel bins")
    return figure
