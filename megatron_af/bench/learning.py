"""One model that learns in several ways, beside the public code's: what ``step`` and other subjects of the bench time.

    learning = Learning(configuration(512), groups)
    batch = Mixed.draw(seed=0, batch=8)
    check_same(learning.computed(batch, "packed"), learning.reference(batch))
    learning.seconds(batch, "public")

Ways: ``public`` is the public code's, in plain PyTorch (``public_way.py``); ``longest`` pads every clip to the longest
of the step and every text to the longest of the batch; ``groups`` runs clips of similar length through the
transformation layers together; ``packed`` puts several samples into a text row besides. These read features from a
cache. With ``live`` (packed) and ``public live`` mel goes through the encoder, in the public code's way that of clips
padded to the longest.

Shapes: S text positions, B rows, W windows, F mel frames, M mel bins, L tokens of a window, D audio width.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from dali_pipes.sound import FLOOR_DB
from megatron_af.bench.machine import clock
from megatron_af.bench.public_way import PublicWay
from megatron_af.bench.same import Computed
from megatron_af.config import (
    Config,
    CrossAttentionConfig,
    EncoderConfig,
    LMConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    TransformConfig,
)
from megatron_af.parallel.device import current_device

PUBLIC, LIVE = ("public", "public live"), ("live", "public live")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VOCABULARY, ADDED, BATCH = 4_096, 8, 8


@dataclass(frozen=True)
class Mixed:
    """A batch of the mixed stream: windows and text tokens of each sample."""

    windows: tuple[int, ...]
    tokens: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int, batch: int, longest: int = 30) -> "Mixed":
        draw = random.Random(seed)

        def windows() -> int:
            share = draw.random()
            drawn = 1 if share < 0.6 else draw.randint(2, 3) if share < 0.85 else draw.randint(4, 30)
            return min(drawn, longest)

        return cls(tuple(windows() for _ in range(batch)), tuple(draw.randint(40, 200) for _ in range(batch)))


def configuration(width: int, precision: str = "fp32", depths: tuple[int, ...] = (1, 1, 1, 1)) -> Config:
    """A language model of 256 x 4 that hears tokens of ``width``; encoder aside, everything trains.

    Args:
        depths: of the encoder, which only ``live`` ways run: for the others it says how wide features are.
    """
    stage = StageConfig(
        trainable=("transform.*", "added_rows", "lm.*"),
        blend={"mixed": 1.0},
        max_windows=30,
        pack_tokens=512,
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )
    return Config(
        name="step",
        precision="bf16" if precision == "bf16" else "fp32",
        model=ModelConfig(
            encoder=EncoderConfig(
                embed_dim=width // 8, depths=depths, heads=(1, 1, 1, 1), fusion=False, classes=0, stft_weights=False
            ),
            transform=TransformConfig(layers=3, heads=8, ffn=width),
            lm=LMConfig(hidden=256, layers=4, heads=4, kv_heads=2, ffn=1024, vocab=VOCABULARY, max_positions=1024),
            cross_attention=CrossAttentionConfig(interval=1, heads=4, head_dim=64),
        ),
        curriculum={"step": stage},
        stage="step",
    )  # fmt: skip


class Learning:
    """The answer objective on batches of random features (or mel) and texts."""

    def __init__(self, config: Config, groups: Any, *, in_place: bool = False) -> None:
        """
        Args:
            in_place: draw the decoder's first values where its weights lie, others on each kind of device; on the host
                a released size takes half a minute.
        """
        from megatron_af.model import Vocabulary, build
        from megatron_af.train.objectives.answer_learner import AnswerLearner
        from megatron_af.train.trainable import select

        self._device = current_device()
        self._config, self._stage = config, config.curriculum[config.stage]
        self._first_added = config.model.lm.vocab - ADDED
        vocabulary = Vocabulary(first_added_id=self._first_added, num_added=4)
        self.model = build(config, vocabulary, self._device, drawn=lambda name: not in_place)
        open_gates(self.model)
        if in_place:
            draw_in_place((name, weight) for name, weight in self.model.named_parameters() if name.startswith("lm."))
        stage = self._stage
        select(self.model.named_parameters(), stage)
        self._learner = AnswerLearner(config, stage, self.model, groups, self._device.torch)
        self._per_window, self._width = config.model.encoder.tokens_per_window, config.model.encoder.feature_dim
        self._dtype = DTYPES[config.precision]
        self.exact = config.precision == "fp32"
        self._drawn: dict[Mixed, tuple[tuple[Tensor, ...], list[Tensor]]] = {}
        """Features and ids of each batch: those of a released size take a second of the host."""

    @cached_property
    def public(self) -> PublicWay:
        """The public code's way, with a copy of the weights."""
        return PublicWay(self._config, self.model.named_parameters(), self._first_added)

    def compile_layers(self) -> None:
        for chunk in self.model.chunks:
            chunk.compile_layers()

    @property
    def optimizer(self) -> Any:
        return self._learner.optimizer

    def computed(self, batch: Mixed, way: str) -> Computed:
        if way in PUBLIC:
            return self._computed_publicly(batch, way)
        with _padding(way):
            record = self._learner.forward_backward(self.batch(batch, way))
        named = [(name, getattr(p, "main_grad", None)) for name, p in self.model.named_parameters()]
        return Computed(record["loss"], {name: grad.clone().cpu() for name, grad in named if grad is not None})

    def loss(self, batch: Mixed, way: str) -> float:
        if way in PUBLIC:
            return float(self.public.loss(*(samples := self._samples(batch, way)), _learnt_from(samples[1])).detach())
        return float(self._learner.forward_backward(self.batch(batch, way))["loss"])

    def seconds(self, batch: Mixed, way: str, within: AbstractContextManager[object] | None = None) -> float:
        """
        Args:
            within: is entered for the step alone, not for what is drawn for it.
        """
        made, now = self.batch(batch, way), clock(self._device.torch)
        features, ids = self._samples(batch)
        padded_WFM = self._padded_mel(batch) if way == "public live" else None
        self._wait()
        with within or nullcontext():
            began = now()
            if way in PUBLIC:
                features = features if padded_WFM is None else self._encoded(batch, padded_WFM)
                torch.autograd.backward(self.public.loss(features, ids, _learnt_from(ids)))
                self.public.step()
            else:
                with _padding(way):
                    self._learner.forward_backward(made)
                self._learner.optimizer.step_checked()
            self._wait()
            took = now() - began
        if "public" in vars(self):
            self.public.take(self.model.named_parameters())  # the next batch finds the same weights in both
        return took

    def passes(self, batch: Mixed) -> tuple[float, float]:
        """Seconds of a forward pass alone, and of one with its way back, of a packed batch."""
        made, now = self.batch(batch, "packed"), clock(self._device.torch)
        taken = []
        for work in (self._learner.measure, self._learner.forward_backward):
            self._wait()
            began = now()
            work(made)
            self._wait()
            taken.append(now() - began)
        return taken[0], taken[1]

    def operations(self, batch: Mixed, way: str = "packed") -> float:
        """That the samples of a batch need by themselves; live ways: their encoder as well."""
        alone = [Mixed((windows,), (tokens,)) for windows, tokens in zip(batch.windows, batch.tokens, strict=True)]
        front = self._config.model.front_end

        def empty(sample: Mixed) -> Any:  # what is counted follows from shapes alone
            (windows,), (tokens,) = sample.windows, sample.tokens
            features = (torch.empty(windows, self._per_window, self._width, dtype=self._dtype),)
            mel_WFM = torch.empty(windows, front.window_frames, front.mel_bins) if way in LIVE else None
            return self._made(sample, "packed", features, [torch.zeros(tokens, dtype=torch.int64)], mel_WFM)

        return sum(self._learner.flops(empty(sample)) for sample in alone)

    def reference(self, batch: Mixed, way: str = "public") -> Computed:
        """In float64 behind the encoder, and one sample after the other, so that nothing is padded."""
        features, ids = self._samples(batch, way)
        learnt_from = _learnt_from(ids)
        learnt = [len(sample) - 1 - begin for sample, begin in zip(ids, learnt_from, strict=True)]
        weights = [(name, Parameter(w.double(), w.requires_grad)) for name, w in self.model.named_parameters()]
        exact, total = PublicWay(self._config, weights, self._first_added), 0.0
        for clip, sample, begin, count in zip(features, ids, learnt_from, learnt, strict=True):
            loss = exact.loss([clip], [sample], [begin]) * (count / sum(learnt))
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return Computed(total, {name: w.grad.cpu() for name, w in exact.weights.items() if w.grad is not None})

    def _computed_publicly(self, batch: Mixed, way: str) -> Computed:
        features, ids = self._samples(batch, way)
        loss = self.public.loss(features, ids, _learnt_from(ids))
        torch.autograd.backward(loss)
        found = {name: w.grad.cpu() for name, w in self.public.weights.items() if w.grad is not None}
        for weight in self.public.trained:
            weight.grad = None
        return Computed(float(loss.detach()), found)

    def _samples(self, mixed: Mixed, way: str = "") -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Features of the clips, and ids of the texts."""
        if mixed not in self._drawn:
            self._drawn[mixed] = self._draw(mixed)
        features, ids = self._drawn[mixed]
        # Of its own a tensor may have a copy on the device: those that were drawn are to have none.
        own = tuple(clip.view_as(clip) for clip in features)
        return self._encoded(mixed, self._padded_mel(mixed)) if way in LIVE else own, ids

    def _draw(self, mixed: Mixed) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        generator = torch.Generator().manual_seed(sum(mixed.windows) * 1009 + sum(mixed.tokens))
        features = tuple(
            torch.randn(windows, self._per_window, self._width, generator=generator).to(self._dtype)
            for windows in mixed.windows
        )
        return features, [torch.randint(self._first_added, (n,), generator=generator) for n in mixed.tokens]

    def _padded_mel(self, mixed: Mixed) -> Tensor:
        """Of each clip as many windows as the longest has, [B x the most, F, M]."""
        most, clips = max(mixed.windows), torch.split(mel(self._config, sum(mixed.windows)), list(mixed.windows))
        padded = [F.pad(clip, (0, 0, 0, 0, 0, most - len(clip)), value=FLOOR_DB) for clip in clips]
        return torch.cat(padded).to(self._device.torch)

    @torch.no_grad()
    def _encoded(self, mixed: Mixed, padded_WFM: Tensor) -> tuple[Tensor, ...]:
        """Features of the clips as the public code makes them: padding goes through the encoder."""
        front: Any = self.model.front
        by_clip = torch.split(front.encode(padded_WFM).to(self._dtype), max(mixed.windows))
        return tuple(clip[:windows] for clip, windows in zip(by_clip, mixed.windows, strict=True))

    def _wait(self) -> None:
        if self._device.is_gpu:
            torch.cuda.synchronize()

    def batch(self, mixed: Mixed, way: str) -> Any:
        """
        Args:
            way: also ``live``: packed, and its mel goes through the encoder.
        """
        features, ids = self._samples(mixed)
        mel_WFM = mel(self._config, sum(mixed.windows)).to(self._device.torch) if way == "live" else None
        return self._made(mixed, way, features, ids, mel_WFM)

    def _made(
        self, mixed: Mixed, way: str, features: tuple[Tensor, ...], ids: Sequence[Tensor], mel_WFM: Tensor | None
    ) -> Any:
        from megatron_af.audio.features import KnownFeatures
        from megatron_af.data.batch import StepAudio, StepBatch, TextBatch
        from megatron_af.data.packing import pack

        rows = [[sample] for sample in range(len(ids))]
        if way in ("packed", "live"):
            rows = pack(list(zip(mixed.tokens, mixed.windows, strict=True)), self._stage.pack_tokens)
        text, windows = answer_rows(rows, ids), sum(mixed.windows)
        audio = StepAudio(
            clip_windows=mixed.windows,
            owners=(tuple(range(len(ids))),),
            mel_WFM=mel_WFM,
            known=KnownFeatures(keys=("",) * len(ids), found=features) if mel_WFM is None else None,
            seconds=10.0 * windows,
        )
        return StepBatch(
            audio=audio, text=TextBatch(rows=(text,), num_tokens=sum(mixed.tokens)), sample_ids=("",) * len(ids)
        )


@torch.no_grad()
def open_gates(model: Any) -> None:
    """Else nothing that is heard would have a gradient."""
    for name, parameter in model.named_parameters():
        if "gate_" in name:
            parameter.fill_(0.5)


@torch.no_grad()
def draw_in_place(decoder: Iterable[tuple[str, Parameter]]) -> None:
    """Give weights of a decoder, but its gates, first values where they lie."""
    generator: torch.Generator | None = None
    for name, parameter in decoder:
        generator = generator or torch.Generator(parameter.device).manual_seed(0)
        if "gate_" in name:
            continue
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02, generator=generator)
        else:
            parameter.fill_(float(name.endswith("weight")))


def mel(config: Config, windows: int, seed: int = 0) -> Tensor:
    """Decibels of some windows, [W, F, M], on the host."""
    front = config.model.front_end
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(windows, front.window_frames, front.mel_bins, generator=generator) * 10 - 40


def answer_rows(rows: Sequence[Sequence[int]], ids: Sequence[Tensor]) -> Any:
    """One micro-batch; every sample hears its own clip, and its second half is supervised."""
    from megatron_af.data.batch import IGNORED, TextRows

    longest = max(sum(len(ids[sample]) for sample in row) for row in rows)
    shape = (len(rows), -(-longest // 8) * 8)
    tokens_BS, labels_BS = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    segment_BS, last_BS = torch.full(shape, -1, dtype=torch.int32), torch.full(shape, -1, dtype=torch.int32)
    first_BS = torch.zeros(shape, dtype=torch.int32)
    for row, samples in enumerate(rows):
        begin = 0
        for place, sample in enumerate(samples):
            end = begin + len(ids[sample])
            tokens_BS[row, begin:end] = ids[sample]
            learnt = slice(begin + _learnt_from(ids)[sample], end - 1)
            labels_BS[row, learnt] = tokens_BS[row, learnt.start + 1 : end]
            segment_BS[row, begin:end] = first_BS[row, begin:end] = last_BS[row, begin:end] = place
            begin = end
    return TextRows(
        ids_BS=tokens_BS,
        labels_BS=labels_BS,
        segment_BS=segment_BS,
        first_audio_BS=first_BS,
        last_audio_BS=last_BS,
        dataset_BS=torch.zeros(shape, dtype=torch.int32),
        clips=tuple(tuple(row) for row in rows),
    )


def _learnt_from(ids: Sequence[Tensor]) -> list[int]:
    return [len(sample) // 2 for sample in ids]


@contextmanager
def _padding(way: str) -> Iterator[None]:
    """The way in which clips share a run of the transformation layers."""
    from megatron_af import model

    ours: Callable[..., list[list[int]]] = model.length_groups
    if way == "longest":
        model.length_groups = lambda windows, *_, **__: [list(range(len(windows)))]
    try:
        yield
    finally:
        model.length_groups = ours
