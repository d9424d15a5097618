"""The stream of a stage's step batches, and batches of given rows for evaluation.

    stream = Stream(config, stage, dp_rank=0, dp_size=2, mp_rank=0, mp_size=1, device=current_device())
    batch = stream.batch(step)          # a pure function of (config, stage, step, ranks)

Data-parallel rank r takes slots r*n to (r+1)*n - 1 of every global batch, so the samples of a global batch do not
depend on the number of ranks. Text is made on every rank of a model-parallel group, audio is read only by the rank
that encodes it. The next batches are made in the background while a step computes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from dali_pipes.waves import AudioError
from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import Captions, StepBatch, assign_clips
from megatron_af.data.clips import ClipLoader
from megatron_af.data.collate import PackedRow, Segment, collate, padded_length
from megatron_af.data.feature_cache import FeatureCache
from megatron_af.data.packing import pack
from megatron_af.data.rows import Clip, Row
from megatron_af.data.samples import Sample, SampleSource
from megatron_af.data.templates import STYLES, render, render_prompt
from megatron_af.parallel.device import Device
from megatron_af.text.tokenizer import Tokenizer

AHEAD = 2
"""Batches made before they are asked for."""


class BatchMaker:
    """Turns samples into the batch of one rank."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        loader: ClipLoader,
        *,
        mp_rank: int = 0,
        mp_size: int = 1,
        cache: FeatureCache | None = None,
        pack_tokens: int = 0,
    ) -> None:
        self.loader, self.cache = loader, cache
        self._pack_tokens = pack_tokens
        # The interleaved pipeline schedule takes micro-batches in groups of the pipeline's size.
        self._micro_batch_multiple = config.parallel.pipeline if config.parallel.virtual_pipeline > 1 else 1
        self._tokenizer = tokenizer
        self._mp_rank, self._mp_size = mp_rank, mp_size
        self._length_multiple = config.parallel.tensor
        self._immediate = config.model.cross_attention.immediate

    def make(self, samples: Sequence[Sample], micro_batch: int) -> tuple[StepBatch, dict[int, str]]:
        """The batch, and which samples sound silent because their audio could not be decoded, and why."""
        clips: dict[Clip, int] = {}
        heard = [tuple(clips.setdefault(clip, len(clips)) for clip in sample.row.clips) for sample in samples]
        windows = tuple(self.loader.num_windows(clip) for clip in clips)
        owners = assign_clips(windows, self._mp_size)
        owned, audio = owners[self._mp_rank], list(clips)
        keys = self._keys([audio[i] for i in owned])
        features = self.cache.lookup(keys) if self.cache else [None] * len(owned)
        fresh = [clip for clip, feature in zip(owned, features, strict=True) if feature is None]
        mel_WFM, bad = self.loader.load([audio[i] for i in fresh]) if fresh else (None, {})
        bad_clips = {fresh[i]: why for i, why in bad.items()}
        hits = [feature for feature in features if feature is not None]

        texts = self._text_rows(samples, heard, windows, micro_batch)
        length = padded_length(max((row.num_tokens for row in texts), default=0), self._length_multiple)
        batch = StepBatch(
            rows=tuple(
                collate(texts[i : i + micro_batch], self._tokenizer, length, immediate=self._immediate)
                for i in range(0, len(texts), micro_batch)
            ),
            captions=tuple(
                captions
                for sample, ids in zip(samples, heard, strict=True)
                if not sample.segments
                for captions in _captions(sample.row, ids[0], sample.dataset)
            ),
            clip_windows=windows,
            owners=owners,
            mel_WFM=mel_WFM,
            features_WLD=torch.cat(hits) if hits else None,
            cached=tuple(feature is not None for feature in features) if self.cache else (),
            clip_keys=tuple("" if i in bad_clips else key for i, key in zip(owned, keys, strict=True))
            if self.cache
            else (),
            sample_ids=tuple(sample.row.id for sample in samples),
            audio_seconds=sum(self.loader.seconds(clip) for clip in clips),
            num_text_tokens=sum(row.num_tokens for row in texts),
        )
        silent = {s: bad_clips[i] for s, ids in enumerate(heard) for i in ids if i in bad_clips}
        return batch, silent

    def _text_rows(
        self, samples: Sequence[Sample], heard: Sequence[tuple[int, ...]], windows: Sequence[int], micro_batch: int
    ) -> list[PackedRow]:
        spoken = [i for i, sample in enumerate(samples) if sample.segments]
        if not self._pack_tokens:
            return [_packed_row([samples[i]], [heard[i]]) for i in spoken]
        sizes = [(samples[i].num_tokens, sum(windows[clip] for clip in heard[i])) for i in spoken]
        groups = pack(sizes, self._pack_tokens, micro_batch * self._micro_batch_multiple)
        return [_packed_row([samples[spoken[i]] for i in g], [heard[spoken[i]] for i in g]) for g in groups]

    def _keys(self, clips: Sequence[Clip]) -> list[str]:
        if self.cache is None:
            return [""] * len(clips)
        windows = self.loader.num_windows
        return [self.cache.key(self.loader.digest(clip), clip.start, clip.duration, windows(clip)) for clip in clips]


def _captions(row: Row, clip: int, dataset: int) -> Iterator[Captions]:
    """What is said of the clip, and of its spans."""
    if row.captions:
        yield Captions(clip=clip, positives=row.captions, negatives=row.negatives, dataset=dataset)
    for span in row.spans:
        texts = {"positives": span.captions, "negatives": span.negatives}
        yield Captions(clip=clip, **texts, start=span.start, end=span.end, dataset=dataset)


def _packed_row(samples: Sequence[Sample], heard: Sequence[tuple[int, ...]]) -> PackedRow:
    """Samples side by side in one row, each with its own span of the row's clips."""
    segments: list[Segment] = []
    clips: list[int] = []
    for sample, own in zip(samples, heard, strict=True):
        segments += [
            Segment(ids=ids, first_audio=len(clips), num_audios=len(own), dataset=sample.dataset)
            for ids in sample.segments
        ]
        clips += own
    return PackedRow(segments=tuple(segments), clips=tuple(clips))


class Stream:
    """Step batches of one rank, in order, made ahead by a background thread.

    Args:
        encoder_digest: of the frozen encoder; with it, and ``data.feature_cache`` set, features come from the cache.
        start_step: the first step that will be asked for.
    """

    def __init__(
        self,
        config: Config,
        stage: StageConfig,
        *,
        dp_rank: int,
        dp_size: int,
        mp_rank: int,
        mp_size: int,
        device: Device,
        start_step: int = 0,
        encoder_digest: str = "",
    ) -> None:
        if stage.global_batch_samples % dp_size:
            raise ValueError(
                f"stage.global_batch_samples={stage.global_batch_samples} is no multiple of {dp_size} data-parallel "
                "ranks; change it, or the number of processes"
            )
        self._per_rank = stage.global_batch_samples // dp_size
        self._first_slot = dp_rank * self._per_rank
        self._micro_batch = stage.micro_batch_samples
        loader = ClipLoader(config, max_windows=stage.max_windows, device=device)
        report = config.stage_folder(config.stage) / "replaced.jsonl"
        self._source = SampleSource(config, stage, loader, report, speaks=mp_rank == 0)
        self.cache: FeatureCache | None = None
        """Encoder features shared by ranks and runs; None when the encoder trains or no folder is set."""
        if config.data.feature_cache and encoder_digest:
            folder = Path(config.data.feature_cache)
            self.cache = FeatureCache(folder, config.model.front_end, encoder_digest, config.precision)
        self._maker = BatchMaker(
            config,
            self._source.tokenizer,
            loader,
            mp_rank=mp_rank,
            mp_size=mp_size,
            cache=self.cache,
            pack_tokens=stage.pack_tokens,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._ahead: dict[int, Future[StepBatch]] = {}
        self._prefetch(start_step)

    def batch(self, step: int) -> StepBatch:
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
        """Stops the background work; features under way reach the disk."""
        self._forget()
        self._thread.shutdown()
        if self.cache is not None:
            self.cache.flush()

    def _prefetch(self, step: int) -> None:
        for ahead in range(step, step + AHEAD + 1):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._thread.submit(self.make, ahead)

    def _forget(self) -> None:
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()

    def make(self, step: int) -> StepBatch:
        """The batch of ``step``, made in the calling thread; not while the background thread works (`pause`)."""
        slots = range(self._first_slot, self._first_slot + self._per_rank)
        samples = [self._source.sample(step, slot) for slot in slots]
        batch, silent = self._maker.make(samples, self._micro_batch)
        for index, why in silent.items():
            sample = samples[index]
            self._source.report(step, self._source.dataset_name(sample.dataset), sample.row.id, f"silenced: {why}")
        return batch


def evaluation_batches(
    config: Config,
    rows: Sequence[Row],
    *,
    tokenizer: Tokenizer,
    device: Device,
    max_windows: int,
    max_text_tokens: int,
    batch_rows: int,
    prompts: bool = False,
) -> Iterator[tuple[list[Row], StepBatch]]:
    """Batches of given rows, in order, nothing drawn and nothing left out; each has one micro-batch.

    Args:
        prompts: instead of one text row per row with all its questions and answers, one text row per question that
            ends with ``<SEP>``, where generation begins. The text rows follow rows, then questions.

    Raises:
        AudioError: a clip cannot be decoded: an evaluation replaces nothing.
    """
    loader = ClipLoader(config, max_windows=max_windows, device=device)
    maker = BatchMaker(config, tokenizer, loader)
    style = STYLES[config.data.text_style]
    for begin in range(0, len(rows), batch_rows):
        chunk = list(rows[begin : begin + batch_rows])
        samples = []
        for row in chunk:
            if prompts:
                texts = [
                    [render_prompt(row, question, tokenizer, max_text_tokens, style=style)]
                    for question in row.questions
                ]
            else:
                texts = [render(row, row.questions, tokenizer, max_text_tokens, style=style)]
            samples += [Sample(row=row, dataset=0, questions=row.questions, segments=tuple(text)) for text in texts]
        batch, silent = maker.make(samples, len(samples))
        if silent:
            problems = "; ".join(f"{samples[i].row.id}: {why}" for i, why in silent.items())
            raise AudioError(f"rows of an evaluation cannot be heard: {problems}")
        yield chunk, batch
