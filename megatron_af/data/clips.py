"""From the clips of a step to mel windows: prepared audio natively in DALI, anything else through soundfile.

    loader = ClipLoader(config, max_windows=12, device=current_device())
    mel_WFM, bad = loader.load(clips)       # bad: {index: why}; such a clip is silent
    loader.below(folder).load(clips)        # of another data root, by the same threads
    loader.close()

A loader owns DALI pipelines and threads: make one, and keep it as long as there is audio to load.

W windows, F mel frames, M mel bins.
"""

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dali_pipes.flac import flac_format, shorten_flac
from dali_pipes.mel import Flac, MelPipeline, Pcm
from dali_pipes.waves import AudioError, check_header, read_wave
from megatron_af.config import Config
from megatron_af.cores import cores_each
from megatron_af.data.rows import Clip
from megatron_af.data.shards import source_of
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.parallel.device import Device


def own_cores() -> int:
    """This rank's share of the cores that this machine's ranks may use."""
    return cores_each(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class ClipLoader:
    """Audio of clips under one data root, cut to ``max_windows``."""

    def __init__(self, config: Config, *, max_windows: int, device: Device) -> None:
        self.front_end = config.model.front_end
        self.max_windows = max_windows
        self._root = DataRoot(config.data.root)
        workers = config.data.workers or own_cores()
        self._pipeline = MelPipeline(self.front_end, device=device.dali, device_id=device.dali_id, threads=workers)
        self._readers = ThreadPoolExecutor(workers, thread_name_prefix="clips") if workers > 1 else None
        self._remember()

    def _remember(self) -> None:
        self._digest_of_file = lru_cache(maxsize=1 << 20)(self._file_digest)
        self._problem_of_header = lru_cache(maxsize=1 << 16)(self._header_problem)

    def below(self, root: Path | str) -> "ClipLoader":
        """This loader, reading clips below another folder or address; pipelines and threads are the same ones."""
        other = copy.copy(self)
        other._root = DataRoot(str(root))
        other._remember()
        return other

    def close(self) -> None:
        """Ends its threads; neither it nor what was made of it by `below` can load any more."""
        if self._readers is not None:
            self._readers.shutdown()
        self._pipeline.close()

    def num_windows(self, clip: Clip) -> int:
        """Windows of a clip, from its promised duration: every rank knows it without decoding."""
        return self.front_end.windows_of(clip.duration, self.max_windows)

    def _covering(self, clip: Clip) -> int:
        """Windows that would cover what is heard of it, whether it is cut into windows or seen in views."""
        return self.front_end.covering(round(clip.duration * self.front_end.sample_rate), self.max_windows)

    def seconds(self, clip: Clip) -> float:
        """Seconds of the clip that its windows or views hear."""
        return min(clip.duration, self.front_end.heard_seconds(self._covering(clip)))

    def check(self, clip: Clip) -> None:
        """Cheap test that every rank makes of files that were not prepared; nothing is decoded.

        Raises:
            AudioError: the clip certainly cannot be used.
        """
        if not clip.length and (problem := self._problem_of_header(clip.path, clip.start, clip.duration)):
            raise AudioError(problem)

    def digest(self, clip: Clip) -> str:
        """What identifies the recording's bytes."""
        if clip.digest:
            return clip.digest
        local = self._root.local(clip.path)
        changed = 0 if local is None else local.stat().st_mtime_ns
        return self._digest_of_file(clip.path, clip.offset, clip.length, changed)

    def load(self, clips: Sequence[Clip]) -> tuple[Tensor, dict[int, str]]:
        """Mel windows of the clips, one after another [W, F, M] (or their views), and what was wrong with which clip.

        A clip that cannot be decoded is silence of the promised length: the text of its sample stands on other
        ranks already, so it can no longer be exchanged for another one.
        """
        windows = [self._covering(clip) for clip in clips]
        sounds, bad = self._sounds(clips, native=True)
        try:
            return self._pipeline.run(sounds, windows), bad
        except RuntimeError:  # DALI loses the whole batch and does not say by which clip: shards went bad on disk
            sounds, bad = self._sounds(clips, native=False)
            return self._pipeline.run(sounds, windows), bad

    def _sounds(self, clips: Sequence[Clip], *, native: bool) -> tuple[list[Pcm | Flac], dict[int, str]]:
        def sound(clip: Clip) -> Pcm | Flac | str:
            try:
                return self._sound(clip, native)
            except (AudioError, StorageError) as error:
                return str(error)

        found = list(self._readers.map(sound, clips) if self._readers else map(sound, clips))
        bad = {index: problem for index, problem in enumerate(found) if isinstance(problem, str)}
        silence = Pcm(np.zeros(0, np.float32))
        return [silence if isinstance(sound, str) else sound for sound in found], bad

    def wave(self, clip: Clip) -> NDArray[np.float32]:
        """The samples that the windows are cut from, before normalisation: float32 [T].

        Raises:
            AudioError: the clip cannot be decoded.
            StorageError: it cannot be read.
        """
        rate, source = self.front_end.sample_rate, source_of(self._root, clip)
        return read_wave(source, start=clip.start, duration=self.seconds(clip), sample_rate=rate)

    def _sound(self, clip: Clip, native: bool) -> Pcm | Flac:
        front_end = self.front_end
        samples = front_end.window_samples + (self._covering(clip) - 1) * front_end.stride_samples
        source = source_of(self._root, clip)
        prepared = native and clip.digest and not clip.start
        if prepared and isinstance(source, bytes) and flac_format(source) == (front_end.sample_rate, 1):
            # A row may be about the beginning of what was prepared.
            return Flac(shorten_flac(source, min(samples, round(clip.duration * front_end.sample_rate))))
        duration = min(clip.duration, samples / front_end.sample_rate)
        return Pcm(read_wave(source, start=clip.start, duration=duration, sample_rate=front_end.sample_rate))

    def _header_problem(self, path: str, start: float, duration: float) -> str:
        local = self._root.local(path)
        try:
            if local is not None:
                check_header(local, start=start, duration=duration)
            elif not self._root.exists(path):
                return f"{self._root}/{path} does not exist"
        except AudioError as error:
            return str(error)
        return ""

    def _file_digest(self, path: str, offset: int, length: int, _changed: int) -> str:
        return self._root.digest(path, offset, length or None)
