"""The recordings of a report: to play, and as the mel that the model hears with an answer's attention under it.

    with Sounds(config) as sounds:
        sounds.player(clip)
        sounds.heard(clip, look)         # the line over it follows the sound; a click goes there

W windows, F mel frames, M mel bins, L audio tokens, T answer tokens.
"""

from html import escape
from types import TracebackType
from typing import Self

import numpy as np
import soxr
from numpy.typing import NDArray

from dali_pipes.waves import AudioError
from megatron_af.config import Config, FrontEndConfig
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Clip
from megatron_af.data.storage import StorageError
from megatron_af.inference.looks import Look
from megatron_af.parallel.device import current_device
from megatron_af.web_page import MP3_RATES, image, sound

SILENT_DB = -99.9
MOST_FRAMES = 1_200
"""Across a picture; more are not seen."""
ACCENT = (0.035, 0.41, 0.85)
STYLE = """
.heard { display: grid; grid-template-columns: minmax(4em, max-content) 1fr; gap: 0 .6em; margin: .4em 0 1em }
.over { position: relative; cursor: pointer; overflow: hidden } .over img { width: 100%; height: 100%; display: block }
.mel { height: 110px } .looks { background: var(--plane) } .looks img { image-rendering: pixelated }
.said span { display: block; height: 22px; line-height: 22px; text-align: right; white-space: nowrap }
.window { position: absolute; top: 0; bottom: 0; border-left: 2px dashed #fff9 } .now { position: absolute; top: 0;
  bottom: 0; width: 2px; background: var(--c2); left: 0 }
.times { display: flex; justify-content: space-between; color: var(--faint); font-size: 12px }
"""
SCRIPT = """
for (const heard of document.querySelectorAll('.heard')) {
  const player = heard.previousElementSibling, seconds = +heard.dataset.seconds;
  const lines = heard.querySelectorAll('.now');
  const follow = () => { for (const l of lines) l.style.left = 100 * player.currentTime / seconds + '%';
    if (!player.paused) requestAnimationFrame(follow) };
  player.addEventListener('play', follow); player.addEventListener('seeked', follow);
  for (const over of heard.querySelectorAll('.over')) over.addEventListener('click', event => {
    const box = over.getBoundingClientRect();
    player.currentTime = Math.min(player.duration || seconds, seconds * (event.clientX - box.left) / box.width);
    player.play() });
}
"""


class Sounds:
    """Reads clips of a run's data root; one that cannot be read is named in its place."""

    def __init__(self, config: Config) -> None:
        self._front: FrontEndConfig = config.model.front_end
        most = max((stage.max_windows for stage in config.curriculum.values()), default=1)
        self._loader = ClipLoader(config, max_windows=most, device=current_device())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.close()

    def player(self, clip: Clip) -> str:
        """The part of a clip that the model hears."""
        try:
            wave_T = self._loader.wave(clip)
        except (AudioError, StorageError, OSError) as error:
            return f'<p class="faint">{escape(clip.path)} cannot be played: {escape(str(error))}</p>'
        rate = self._front.sample_rate
        if rate not in MP3_RATES:
            played = min(MP3_RATES, key=lambda known: abs(known - rate))
            wave_T, rate = soxr.resample(wave_T, rate, played), played
        return sound(wave_T, rate, "MP3")

    def heard(self, clip: Clip, look: Look) -> str:
        """A clip to play, its mel with the borders of the windows, and each token's attention on the same time line."""
        player = self.player(clip)
        mel_WFM, bad = self._loader.load([clip])
        if bad:
            return player
        seconds = look.seconds
        step = self._front.window_seconds - self._front.overlap_seconds
        mel = image(*_colours(self._time_line(mel_WFM.cpu().numpy())))
        borders = "".join(
            f'<i class="window" style="left:{100 * window * step / seconds:.3f}%"></i>'
            for window in range(1, len(mel_WFM))
        )
        said = "".join(f"<span>{escape(token)}</span>" for token in look.tokens)
        rows = image(attention_image(look), "attention of each token of the answer over the recording")
        tall = 22 * len(look.tokens)
        times = "".join(f"<span>{second:.3g} s</span>" for second in np.linspace(0, seconds, 5))
        now = '<i class="now"></i>'
        return (
            f'{player}<div class="heard" data-seconds="{seconds}">'
            f'<div class="said"><span>mel</span></div><div class="over mel">{mel}{borders}{now}</div>'
            f'<div class="said">{said}</div><div class="over looks" style="height:{tall}px">{rows}{now}</div>'
            f'<div></div><div class="times">{times}</div></div>'
        )

    def _time_line(self, mel_WFM: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows beside each other at their seconds, where they overlap the later one; [M, frames], low bins last."""
        windows, frames, bins = mel_WFM.shape
        step = round(frames * self._front.stride_samples / self._front.window_samples)
        line_MF = np.zeros((bins, step * (windows - 1) + frames), np.float32)
        for window, mel_FM in enumerate(mel_WFM):
            line_MF[:, window * step : window * step + frames] = mel_FM.T
        return line_MF[::-1, :: max(1, line_MF.shape[1] // MOST_FRAMES)]


def attention_image(look: Look) -> NDArray[np.float32]:
    """A line per token and a column per moment, colour and opacity [T, moments, 4]; each line's highest is full."""
    moments = np.unique(look.token_seconds_L)
    weights = np.stack([look.weights_TL[:, look.token_seconds_L == moment].sum(1) for moment in moments], axis=1)
    picture = np.empty((*weights.shape, 4), np.float32)
    picture[..., :3] = ACCENT
    picture[..., 3] = weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-9)
    return picture


def _colours(line_MF: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    heard = line_MF[line_MF > SILENT_DB]
    lowest = float(np.quantile(heard, 0.02)) if heard.size else SILENT_DB
    return np.maximum(line_MF, lowest), "mel spectrogram, low tones below"
