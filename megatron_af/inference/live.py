"""A recording that goes on while it is asked about: up to half an hour, in pieces of any size.

    with Live(listener) as live:      # of a model with model.transform.sees = past, model.front_end.level = recorded
        live.hear(samples)                            # mono, at live.rate
        live.ask("what was that?").text
        live.hear(more)

Each finished window is encoded once; its tokens see its own and earlier windows alone, so that what was heard, and its
keys and values in every gated block, never changes. A question reads its text anew, and hears the unfinished window,
filled up with silence, for itself alone: its answer is the one that a recording of what was heard so far would get.

Shapes: W windows, L tokens of a window, D audio width.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_af.audio.transform import Kept
from megatron_af.data.batch import AudioKeys
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.decoder.cache import HeardAudio
from megatron_af.inference.answers import write
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.listener import Listener
from megatron_af.inference.reading import Reading
from megatron_af.inference.requests import BadRequest, TooLarge, check_unicode
from megatron_af.inference.writing import Answer, Tell
from megatron_af.model import AudioFront

MOST_SECONDS = 1800.0

type Samples = NDArray[np.float32]


class Live:
    """
    Raises:
        BadRequest: the model hears whole clips: what was heard would change with each window.
    """

    def __init__(self, listener: Listener) -> None:
        model = listener.config.model
        found = {"transform.sees": model.transform.sees, "front_end.level": model.front_end.level}
        for key, wanted in (("transform.sees", "past"), ("front_end.level", "recorded")):
            if found[key] != wanted:
                raise BadRequest(
                    f"live listening: expected a model trained with model.{key} = {wanted}, got {found[key]}: what was "
                    "heard would change with everything that comes after it"
                )
        self._listener, self._front_end = listener, model.front_end
        self._folder = tempfile.TemporaryDirectory(prefix="audio-flamingo-")
        self._open: Samples = np.zeros(0, np.float32)
        """Samples from the beginning of the next window on."""
        self._kept = Kept()
        self._heard: Reading | None = None
        self.windows = 0
        """Finished ones."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self._front_end.sample_rate

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return (self.windows * self._front_end.stride_samples + len(self._open)) / self.rate

    def hear(self, samples: Samples) -> None:
        """More of the recording. Raises ``BadRequest``, and nothing of the piece is heard."""
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating) or not np.isfinite(samples).all():
            raise BadRequest(f"expected mono samples from -1 to 1, got {samples.dtype} of shape {samples.shape}")
        if self.seconds + len(samples) / self.rate > MOST_SECONDS:
            raise TooLarge(f"expected at most {MOST_SECONDS:g} s, got more; begin a new session")
        self._open = np.concatenate([self._open, samples.astype(np.float32)])
        while len(self._open) >= self._front_end.window_samples:
            keys = self._keys(self._open[: self._front_end.window_samples], self._kept)
            self._heard = self._with(self._heard, keys)
            self._open, self.windows = self._open[self._front_end.stride_samples :], self.windows + 1

    def ask(self, prompt: str, decoding: Decoding = Decoding(), tell: Tell | None = None) -> Answer:  # noqa: B008
        """The answer to a question about what was heard so far.

        Raises:
            BadRequest: nothing was heard, or nothing is asked. TooLong: the question does not fit.
        """
        if not self.seconds:
            raise BadRequest("nothing was heard yet")
        if not prompt.strip():
            raise BadRequest("expected a question, got nothing")
        check_unicode(prompt)
        listener = self._listener
        row = Row(id="live", clips=(Clip(path="live", duration=self.seconds),),
                  questions=(Question(prompt=prompt, output=""),))  # fmt: skip
        ids = listener.prompt(row).segments[-1]
        reading = None if self._heard is None else self._heard.copy()
        if self._counts():
            reading = self._with(reading, self._keys(self._last(), self._kept.copy()))
        assert reading is not None
        settled = listener.settled(decoding, replace(row, clips=()))  # there is no whole recording to compare
        (answer,) = write(reading, [ids], [settled], listener.tokenizer, tell=[tell])
        return answer

    def _counts(self) -> bool:
        """Whether the unfinished window is one of a recording that ends here."""
        samples = self.windows * self._front_end.stride_samples + len(self._open)
        return self._front_end.num_windows(samples, self.windows + 1) > self.windows

    def _last(self) -> Samples:
        """The unfinished window. A recording shorter than one is left to the loader, which fills it as all others."""
        if not self.windows:
            return self._open
        return np.pad(self._open, (0, self._front_end.window_samples - len(self._open)))

    def _with(self, reading: Reading | None, keys: AudioKeys) -> Reading:
        if reading is None:
            immediate = self._listener.config.model.cross_attention.immediate
            heard = HeardAudio.of(keys, [0])
            return Reading(self._listener.model, self._listener.tokenizer, heard, immediate=immediate)
        reading.hear(keys)
        return reading

    @torch.no_grad()
    def _keys(self, samples: Samples, kept: Kept) -> AudioKeys:
        """Audio tokens of one window behind those that are kept; it comes through the loader as every other one."""
        front = self._listener.model.front
        assert isinstance(front, AudioFront)
        file = Path(self._folder.name) / "window.wav"
        soundfile.write(file, samples, self.rate, subtype="FLOAT")
        clip = Clip(path=file.name, duration=len(samples) / self.rate)
        mel_WFM = self._listener.mel(Row(id="live", clips=(clip,)), file.parent)
        features_WLD: Tensor = front.encode(mel_WFM).to(front.dtype)
        tokens_1LD = front.transform(features_WLD.flatten(0, 1)[None], None, kept)
        audio_of_BL = torch.zeros(1, tokens_1LD.shape[1], dtype=torch.int32)
        return AudioKeys(tokens_LBD=tokens_1LD.transpose(0, 1), audio_of_BL=audio_of_BL)
