"""AF-CLAP's contrastive loss over the global batch: one optimizer step's forward and backward pass.

    model = build_clap(config, tokenizer, device)
    learner = ContrastiveLearner(config, stage, model, groups, device.torch)
    numbers = learner.forward_backward(batch)

There is no language model: every rank embeds the clips it owns and their captions, so any layout does.

Shapes: W windows, F mel frames, M mel bins, B samples of this rank, P positives, N negatives, T texts, J joint dim.
"""

import copy
import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_af.audio.augment import draw_mix_up, mix
from megatron_af.audio.clap import ClapModel
from megatron_af.audio.clap_loss import af_clap_loss, clip_loss
from megatron_af.audio.text_tower import TextTokenizer
from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import EncoderSide, StepBatch
from megatron_af.data.caption_texts import CaptionBatch, Captions
from megatron_af.decoder.transformer_config import transformer_config
from megatron_af.flops import Amounts
from megatron_af.model import AudioFlamingo
from megatron_af.parallel.device import Device, current_device
from megatron_af.parallel.groups import Groups
from megatron_af.train.flops import encoder_tally
from megatron_af.train.objectives.answer_learner import wrap_front
from megatron_af.train.optimizer import AudioFlamingoOptimizer, build_optimizer


def build_clap(config: Config, tokenizer: TextTokenizer, device: Device) -> AudioFlamingo:
    """The same fresh model on every rank, in the place of Audio Flamingo's audio side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        front = ClapModel(config.model, tokenizer)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    for parameter in front.parameters():  # parameters only: running statistics stay float32
        parameter.data = parameter.data.to(device.torch, dtype)
    return AudioFlamingo(front=front.to(device.torch), chunks=[])


class ContrastiveLearner:
    """Owns the gradient buffers and the optimizer of both towers, and runs their forward and backward pass."""

    def __init__(
        self, config: Config, stage: StageConfig, model: AudioFlamingo, groups: Groups, device: torch.device
    ) -> None:
        """``requires_grad`` of the parameters must be final: gradient buffers are made here."""
        assert isinstance(model.front, ClapModel)
        self._tally = encoder_tally(config.model, stage)
        self.encoder_side: EncoderSide | None = None  # features are embedded where they are made, and kept nowhere
        self._model, self._groups, self._device = model.front, groups, device
        self._settings, self._text_micro_batch = stage.contrastive, config.model.clap.text_micro_batch
        self._world = groups.front.dp
        self._datasets = sorted(stage.blend)
        layout = copy.copy(transformer_config(config, current_device()))
        self._ddp = wrap_front(model.front, layout, config.parallel.distributed_optimizer, groups)
        self.optimizer: AudioFlamingoOptimizer = build_optimizer(
            config.parallel, stage.optimizer, config.precision, [], self._ddp, groups
        )

    def forward_backward(self, batch: StepBatch[CaptionBatch]) -> dict[str, float]:
        """Gradients of one optimizer step; a collective.

        Returns:
            ``loss`` and ``loss/<data set>`` (mean over the samples of the global batch), ``samples`` and
            ``temperature``.
        """
        self._ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._model.train()
        losses_B = self._losses(batch)
        torch.autograd.backward([losses_B.sum()])
        record = self._record(losses_B, batch)
        self._ddp.finish_grad_sync()
        self._ddp.scale_gradients(1 / record["samples"])
        return {**record, "temperature": 1 / self._model.scale.item()}

    @torch.no_grad()
    def measure(self, batch: StepBatch[CaptionBatch]) -> dict[str, float]:
        """``loss`` of a batch that is not learnt from; a collective."""
        self._model.eval()
        return {"loss": self._record(self._losses(batch), batch)["loss"]}

    def flops(self, batch: StepBatch[CaptionBatch]) -> float:
        # The text tower is not counted: its texts have no length before they are tokenised in the step.
        return self._tally.of(Amounts(windows=sum(batch.audio.clip_windows) * self._groups.data_size))

    def sync_parameters(self) -> None:
        """Nothing is gathered lazily here."""

    def close(self) -> None:
        """Nothing is written in the background."""

    def _record(self, losses_B: Tensor, batch: StepBatch[CaptionBatch]) -> dict[str, float]:
        dataset_B = torch.tensor([sample.dataset for sample in self._own(batch)], device=losses_B.device).long()
        totals = losses_B.new_zeros(len(self._datasets), 2, dtype=torch.float64)
        totals[:, 0].index_add_(0, dataset_B, losses_B.detach().double())
        totals[:, 1].index_add_(0, dataset_B, torch.ones_like(losses_B, dtype=torch.float64))
        dist.all_reduce(totals)
        loss, count = totals.sum(0).tolist()
        by_dataset = zip(self._datasets, totals.tolist(), strict=True)
        return {
            "loss": loss / count,
            "samples": count,
            **{f"loss/{name}": part_loss / part for name, (part_loss, part) in by_dataset if part},
        }

    def _own(self, batch: StepBatch[CaptionBatch]) -> list[Captions]:
        """The samples whose clips this rank owns."""
        own_clips = batch.audio.owners[self._groups.model_rank]
        return [sample for sample in batch.text.captions if sample.clip in own_clips]

    def _losses(self, batch: StepBatch[CaptionBatch]) -> Tensor:
        """Losses of the samples whose clips this rank owns, [B]."""
        own_clips, samples = batch.audio.owners[self._groups.model_rank], self._own(batch)
        place = {clip: i for i, clip in enumerate(own_clips)}
        mel_WFM = batch.audio.mel_WFM
        if mel_WFM is None:  # this rank owns no clip: it only takes part in the collectives
            front_end = self._model.front_end
            mel_WFM = torch.zeros(0, front_end.window_frames, front_end.mel_bins, device=self._device)
        if self._model.training and self._settings.mix_up:
            if any(s.end < math.inf for s in samples):
                raise ValueError("contrastive.mix_up mixes whole clips, these rows have spans: set mix_up to 0")
            clip_B = torch.tensor([place[s.clip] for s in samples], dtype=torch.int64, device=self._device)
            return self._mixed_losses(mel_WFM[clip_B], samples)
        windows = [batch.audio.clip_windows[clip] for clip in own_clips]
        parts = [(place[s.clip], s.start, s.end) for s in samples]
        return self._losses_of(self._model.embed_audio(mel_WFM, windows, parts), samples)[0]

    def _mixed_losses(self, mel_BFM: Tensor, samples: list[Captions]) -> Tensor:
        """Each sample's audio is mixed with another's, and the captions of both count by their shares."""
        partner_B, share_B = draw_mix_up(len(samples), self._settings.mix_up, self._device)
        audio_BJ = self._model.embed_audio(mix(mel_BFM, partner_B, share_B), [1] * len(samples))
        own_B, other_B = self._losses_of(audio_BJ, samples, partner_B)
        return share_B * own_B + (1 - share_B) * other_B

    def _losses_of(
        self, audio_BJ: Tensor, samples: list[Captions], partner_B: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Losses of the samples with their own captions and, for each, with those of its partner."""
        group = self._world
        scale = self._model.scale
        if self._settings.loss == "clip":
            text_BJ = self._embed([s.positives[0] for s in samples])
            pairs = [text_BJ] if partner_B is None else [text_BJ, text_BJ[partner_B]]
            return tuple(clip_loss(audio_BJ, text, scale, group) for text in pairs)
        positives = [text for s in samples for text in s.positives]
        negatives = [text for s in samples for text in s.negatives]
        text_TJ = self._embed(positives + negatives)
        positive_of_P = self._repeat([len(s.positives) for s in samples])
        negative_of_N = self._repeat([len(s.negatives) for s in samples])
        inverse_B = None if partner_B is None else partner_B.argsort()
        maps = [(positive_of_P, negative_of_N)]
        if inverse_B is not None:
            maps.append((inverse_B[positive_of_P], inverse_B[negative_of_N]))
        positives_PJ, negatives_NJ = text_TJ[: len(positives)], text_TJ[len(positives) :]
        form = {"each": self._settings.positives == "each", "symmetric": self._settings.symmetric}
        return tuple(
            af_clap_loss(audio_BJ, positives_PJ, p, negatives_NJ, n, scale, group, **form) for p, n in maps
        )

    def _embed(self, texts: list[str]) -> Tensor:
        if not texts:  # a leaf, so that this rank too takes part in the backward pass of the collectives
            return torch.zeros(0, self._model.joint_dim, device=self._device, requires_grad=True)
        distinct = list(dict.fromkeys(texts))  # many spans say the same
        size = self._text_micro_batch
        if 0 < size < len(distinct):
            distinct.sort(key=len)  # a part is padded to its own longest text
            parts = [self._tokenize(distinct[begin : begin + size]) for begin in range(0, len(distinct), size)]
            found = [checkpoint(self._model.embed_text, *part, use_reentrant=False) for part in parts]
            distinct_TJ = torch.cat(found)
        else:
            distinct_TJ = self._model.embed_text(*self._tokenize(distinct))
        place = {text: i for i, text in enumerate(distinct)}
        return distinct_TJ[torch.tensor([place[text] for text in texts], device=self._device)]

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids_TS, real_TS = self._model.clap.text.tokenize(texts)
        return ids_TS.to(self._device), real_TS.to(self._device)

    def _repeat(self, counts: list[int]) -> Tensor:
        counts_B = torch.tensor(counts, dtype=torch.int64, device=self._device)
        return torch.repeat_interleave(counts_B, output_size=sum(counts))
