"""The stream of a stage's step batches, and batches of given rows for evaluation.

    stream = Stream(config, stage, texts, dp_rank=0, dp_size=2, mp_rank=0, mp_size=1, device=current_device())
    batch = stream.batch(step)          # a pure function of (config, stage, step, ranks), but for what is cached

Data-parallel rank r takes slots r*n to (r+1)*n - 1 of every global batch, so the samples of a global batch do not
depend on the number of ranks. Text is made on every rank of a model-parallel group, audio is read only by the rank
that encodes it. The next batches are made in the background while a step computes.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from dali_pipes.waves import AudioError
from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import (
    EncoderSide,
    HeardClip,
    StepAudio,
    StepBatch,
    StepText,
    assign_clips,
)
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Clip, Row
from megatron_af.data.sample_source import SampleSource, Texts
from megatron_af.parallel.device import Device

AHEAD = 2
"""Batches made before they are asked for."""


class AudioMaker:
    """Turns the clips of some samples into one rank's share of their audio."""

    def __init__(
        self, loader: ClipLoader, *, mp_rank: int = 0, mp_size: int = 1, encoder_side: EncoderSide | None = None
    ) -> None:
        self._loader, self._encoder_side = loader, encoder_side
        self._mp_rank, self._mp_size = mp_rank, mp_size

    def make(self, rows: Sequence[Row]) -> tuple[StepAudio, list[tuple[int, ...]], dict[int, str]]:
        """
        Returns:
            The audio; each row's clips, as indices into its ``clip_windows``; and which rows sound silent because
            their audio could not be decoded, and why.
        """
        place: dict[Clip, int] = {}
        heard = [tuple(place.setdefault(clip, len(place)) for clip in row.clips) for row in rows]
        clips = list(place)
        windows = tuple(self._loader.num_windows(clip) for clip in clips)
        owners = assign_clips(windows, self._mp_size)
        owned = owners[self._mp_rank]
        wanted: Sequence[int] = range(len(owned))
        known = None
        if self._encoder_side is not None:
            known = self._encoder_side.look_up([self._heard(clips[i], windows[i]) for i in owned])
            wanted = known.missing
        mel_WFM, bad = self._loader.load([clips[owned[i]] for i in wanted]) if wanted else (None, {})
        bad_clips = {owned[wanted[i]]: why for i, why in bad.items()}
        audio = StepAudio(
            clip_windows=windows,
            owners=owners,
            mel_WFM=mel_WFM,
            known=None if known is None else known.without([wanted[i] for i in bad]),
            seconds=sum(self._loader.seconds(clip) for clip in clips),
        )
        silent = {row: bad_clips[i] for row, ids in enumerate(heard) for i in ids if i in bad_clips}
        return audio, heard, silent

    def _heard(self, clip: Clip, windows: int) -> HeardClip:
        digest = partial(self._loader.digest, clip)
        return HeardClip(digest=digest, start=clip.start, duration=clip.duration, windows=windows)


class Stream[Said, Text: StepText]:
    """Step batches of one rank, in order, made ahead by a background thread.

    Args:
        texts: the objective's side of the data.
        encoder_side: asked, before any audio is decoded, which clips it wants mel of; None: of all.
        start_step: the first step that will be asked for.
    """

    def __init__(
        self,
        config: Config,
        stage: StageConfig,
        texts: Texts[Said, Text],
        *,
        dp_rank: int,
        dp_size: int,
        mp_rank: int,
        mp_size: int,
        device: Device,
        start_step: int = 0,
        encoder_side: EncoderSide | None = None,
    ) -> None:
        if stage.global_batch_samples % dp_size:
            raise ValueError(
                f"stage.global_batch_samples={stage.global_batch_samples} is no multiple of {dp_size} data-parallel "
                "ranks; change it, or the number of processes"
            )
        self._per_rank = stage.global_batch_samples // dp_size
        self._first_slot = dp_rank * self._per_rank
        self._texts = texts
        self._loader = loader = ClipLoader(config, max_windows=stage.max_windows, device=device)
        report = config.stage_folder(config.stage) / "replaced.jsonl"
        self._source = SampleSource(config, stage, texts, loader, report, speaks=mp_rank == 0)
        self._audio = AudioMaker(loader, mp_rank=mp_rank, mp_size=mp_size, encoder_side=encoder_side)
        # Else every rank would set up the first GPU besides its own, in whose memory rank 0 computes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data", initializer=device.make_current)
        self._ahead: dict[int, Future[StepBatch[Text]]] = {}
        self._prefetch(start_step)

    def batch(self, step: int) -> StepBatch[Text]:
        """The batch of ``step``; any order works, consecutive steps are fast.

        Raises:
            TooManyReplacements: more of the data is unusable than the configuration allows.
        """
        if step not in self._ahead:
            self._forget()
        self._prefetch(step)
        return self._ahead.pop(step).result()

    def pause(self) -> None:
        """Waits for the background work and asks for no more until the next `batch`."""
        self._forget()
        self._thread.submit(int).result()

    def close(self) -> None:
        """Stops the background work."""
        self._forget()
        self._thread.shutdown()
        self._loader.close()

    def _prefetch(self, step: int) -> None:
        for ahead in range(step, step + AHEAD + 1):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._thread.submit(self.make, ahead)

    def _forget(self) -> None:
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()

    def make(self, step: int) -> StepBatch[Text]:
        """The batch of ``step``, made in the calling thread; not while the background thread works (`pause`)."""
        slots = range(self._first_slot, self._first_slot + self._per_rank)
        samples = [self._source.sample(step, slot) for slot in slots]
        audio, heard, silent = self._audio.make([sample.row for sample in samples])
        for index, why in silent.items():
            sample = samples[index]
            self._source.report(step, self._source.dataset_name(sample.dataset), sample.row.id, f"silenced: {why}")
        text = self._texts.collate(samples, heard, audio.clip_windows)
        return StepBatch(audio=audio, text=text, sample_ids=tuple(sample.row.id for sample in samples))


def hear(loader: ClipLoader, rows: Sequence[Row]) -> tuple[StepAudio, list[tuple[int, ...]]]:
    """The audio of given rows, all of it on this rank; and each row's clips, as indices into ``clip_windows``.

    Raises:
        AudioError: a clip cannot be decoded: outside of training nothing is replaced.
    """
    audio, heard, silent = AudioMaker(loader).make(rows)
    if silent:
        told = dict.fromkeys(f"{rows[i].id}: cannot be heard: {why}" for i, why in silent.items())
        raise AudioError("; ".join(told))  # a row may be asked several times
    return audio, heard
