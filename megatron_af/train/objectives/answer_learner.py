"""The language-model loss on supervised tokens, given the audio: one optimizer step's forward and backward pass.

    learner = AnswerLearner(config, stage, model, groups, device.torch)
    numbers = learner.forward_backward(batch)

Encode ahead, run megatron-core's pipeline schedule, finish the audio side's backward pass. The loss is the mean over
the supervised tokens of the *global* batch, whatever the layout and the micro-batching.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_af.audio.encode_ahead import EncodeAhead, StepKeys
from megatron_af.audio.features import ClipFeatures
from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import IGNORED, EncoderSide, StepBatch, TextBatch, TextRows
from megatron_af.decoder.stretches import Sight
from megatron_af.model import AudioFlamingo, AudioFront
from megatron_af.parallel.groups import Groups
from megatron_af.parallel.transfer import send, there
from megatron_af.train.flops import answer_amounts, answer_tally, encoded_share
from megatron_af.train.optimizer import AudioFlamingoOptimizer, build_optimizer


class AnswerLearner:
    """Owns the model's gradient buffers and optimizer, and runs its forward and backward pass."""

    def __init__(
        self,
        config: Config,
        stage: StageConfig,
        model: AudioFlamingo,
        groups: Groups,
        device: torch.device,
    ) -> None:
        """Weights must be loaded and ``requires_grad`` be final: gradient buffers are made here."""
        self._groups, self._device = groups, device
        skipped = sum([chunk.skip_identity_blocks() for chunk in model.chunks])
        if config.compile:
            for chunk in model.chunks:
                chunk.compile_layers()
        self._tally = answer_tally(config.model, stage, blocks=not skipped)
        self._tokens_per_window = config.model.encoder.tokens_per_window
        self._datasets = sorted(stage.blend)
        parallel = config.parallel
        self._chunks = [
            DistributedDataParallel(
                chunk.config,
                _ddp_config(parallel.distributed_optimizer, parallel.overlap),
                chunk,
                # With several chunks a stage, only the first has gradients ready while others still compute.
                disable_bucketing=index > 0,
            )
            for index, chunk in enumerate(model.chunks)
        ]
        self._front = wrap_front(model.front, model.chunks[0].config, parallel.distributed_optimizer, groups)
        self.optimizer: AudioFlamingoOptimizer = build_optimizer(
            parallel, stage.optimizer, config.precision, self._chunks, self._front, groups
        )
        assert isinstance(model.front, AudioFront)
        self._features = ClipFeatures.of(config, model.front, device)
        self.encoder_side: EncoderSide | None = self._features
        self._ahead = EncodeAhead(self._front, groups, device, self._features)
        self._gathers_lazily = parallel.overlap and parallel.distributed_optimizer
        self._connect(model.chunks[0].config, parallel.overlap)

    def _connect(self, lm_config: TransformerConfig, overlap: bool) -> None:
        """Give megatron-core's schedules their hooks."""

        def per_chunk(name: str) -> Any:
            hooks = [getattr(chunk, name) for chunk in self._chunks]
            return hooks if len(hooks) > 1 else hooks[0]

        def finalize(models: list[nn.Module], num_tokens: Tensor, **kwargs: Any) -> None:
            self._ahead.backward()
            finalize_model_grads(models, num_tokens, **kwargs)  # num_tokens becomes the global count, in place
            self._ahead.finish(num_tokens)

        lm_config.finalize_model_grads_func = finalize
        lm_config.grad_scale_func = self.optimizer.scale_loss
        lm_config.no_sync_func = per_chunk("no_sync")
        if overlap:
            lm_config.grad_sync_func = per_chunk("start_grad_sync")
            if self._gathers_lazily:
                lm_config.param_sync_func = per_chunk("start_param_sync")

    def forward_backward(self, batch: StepBatch[TextBatch]) -> dict[str, float]:
        """Gradients of one optimizer step; a collective.

        Returns:
            ``loss`` and ``loss/<data set>`` (mean over supervised tokens of the global batch), ``tokens`` and
            ``tokens/<data set>`` (how many those are), and ``sample_loss/<data set>`` (mean over samples of each
            one's own mean, in which long answers count no more than short ones), equal on all ranks; and
            ``too_long/<data set>`` (questions that fit into no text row), where there are any.
        """
        for module in (*self._chunks, self._front):
            module.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._front.train()
        totals = self._totals(batch, forward_only=False)
        loss, count, *_ = totals.sum(0).tolist()
        record = {"loss": loss / max(count, 1.0), "tokens": count}
        for name, (total, tokens, sample_means, samples, _, lost) in zip(self._datasets, totals.tolist(), strict=True):
            if tokens:
                record[f"loss/{name}"] = total / tokens
                record[f"tokens/{name}"] = tokens
                record[f"sample_loss/{name}"] = sample_means / samples
            if lost:
                record[f"too_long/{name}"] = lost
        return record

    def measure(self, batch: StepBatch[TextBatch]) -> dict[str, float]:
        """``loss``, the mean over the supervised tokens of a batch, and ``sure``, the part of its samples (0 to 1) of
        which every token is likelier than all others together; a collective. Nothing of it is learnt from."""
        self.sync_parameters()
        for module in (*self._chunks, self._front):
            module.eval()
        with torch.no_grad():
            loss, count, _, samples, sure, _ = self._totals(batch, forward_only=True).sum(0).tolist()
        for chunk in self._chunks:
            chunk.train()
        return {"loss": loss / max(count, 1.0), "sure": sure / max(samples, 1.0)}

    def _totals(self, batch: StepBatch[TextBatch], *, forward_only: bool) -> Tensor:
        """By data set, sums over the world: losses and number of supervised tokens; means of samples, their number, and
        that of sure ones; questions that were too long."""
        text = batch.text
        keys = self._ahead.forward(batch.audio, [rows.clips for rows in text.rows])
        shares = [token_shares(rows) for rows in text.rows]
        sights = [Sight.of(rows, keys.audio_of(index)) for index, rows in enumerate(text.rows)]
        self._send(text.rows, shares, sights)
        totals = torch.zeros(len(self._datasets), 6, device=self._device, dtype=torch.float64)
        step = partial(self._forward_step, batch=text, keys=keys, shares=shares, sights=sights, totals=totals[:, :5])
        iterators = [iter(range(len(text.rows))) for _ in self._chunks]
        get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._chunks if len(self._chunks) > 1 else self._chunks[0],
            num_microbatches=len(text.rows),
            seq_length=text.rows[0].ids_BS.shape[1],
            micro_batch_size=text.rows[0].ids_BS.shape[0],
            forward_only=forward_only,
        )
        # Only the last pipeline stage has losses, and its tensor ranks all have the same.
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            totals.zero_()
        if self._groups.model_rank == 0:  # every rank of the group has the same text
            for dataset, count in text.too_long.items():
                totals[dataset, 5] = count
        dist.all_reduce(totals)
        return totals

    def flops(self, batch: StepBatch[TextBatch]) -> float:
        amounts = answer_amounts(
            self._tokens_per_window,
            batch.audio,
            batch.text.rows,
            encoded_share=encoded_share(batch.audio, self._groups.model_rank),
        )
        return self._tally.of(amounts) * self._groups.data_size

    def sync_parameters(self) -> None:
        """Under overlapped ZeRO-1, gather the parameters that a next forward pass would gather."""
        if self._gathers_lazily:
            for chunk in self._chunks:
                chunk.start_param_sync(force_sync=True)

    def close(self) -> None:
        self._features.close()

    def _send(self, rows: Sequence[TextRows], shares: Sequence[tuple[Tensor, ...]], sights: Sequence[Sight]) -> None:
        """What a step's rows need on the device, in one copy."""
        fields = [
            (r.ids_BS, *r.supervised, *share, *sight.tensors)
            for r, share, sight in zip(rows, shares, sights, strict=True)
        ]
        send([tensor for micro_batch in fields for tensor in micro_batch], self._device)

    def _forward_step(
        self,
        microbatches: Iterator[int],
        chunk: DistributedDataParallel,
        *,
        batch: TextBatch,
        keys: StepKeys,
        shares: Sequence[tuple[Tensor, ...]],
        sights: Sequence[Sight],
        totals: Tensor,
    ) -> tuple[Tensor, Any]:
        index = next(microbatches)
        rows = batch.rows[index]
        output = chunk(rows, keys[index], self._ahead.added_rows_NH, sight=sights[index])

        def loss_of(token_losses_N: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            dataset_N, place_N, share_N = (there(x_N, self._device) for x_N in shares[index])
            losses_N = token_losses_N.detach().double()
            sure_N = share_N * all_below(losses_N, place_N, math.log(2))
            ones_N = torch.ones_like(losses_N)
            totals.index_add_(0, dataset_N, torch.stack([losses_N, ones_N, losses_N * share_N, share_N, sure_N], dim=1))
            count = torch.full((), token_losses_N.numel(), dtype=torch.int, device=self._device)
            return token_losses_N.sum(), count, {}

        return output, loss_of


def token_shares(rows: TextRows) -> tuple[Tensor, Tensor, Tensor]:
    """Of each supervised token of a micro-batch: its data set and which of the samples it belongs to, int64 [N], and
    1 / the number of that sample's supervised tokens, float64 [N]."""
    dataset_N = rows.dataset_BS[rows.labels_BS != IGNORED].long()
    length = rows.ids_BS.shape[1]
    sample_BS = rows.segment_BS.long() + length * torch.arange(len(rows.ids_BS))[:, None]
    sample_N = sample_BS[rows.labels_BS != IGNORED]
    _, place_N, count = torch.unique_consecutive(sample_N, return_inverse=True, return_counts=True)
    return dataset_N, place_N, 1.0 / count[place_N].double()


def all_below(loss_N: Tensor, place_N: Tensor, bound: float) -> Tensor:
    """1 where every token of the same sample has a loss below the bound, else 0; like ``loss_N``."""
    worst = loss_N.new_zeros(len(loss_N)).scatter_reduce(0, place_N, loss_N, "amax")
    return (worst[place_N] < bound).to(loss_N.dtype)


def wrap_front(
    front: nn.Module, lm_config: TransformerConfig, distributed_optimizer: bool, groups: Groups
) -> DistributedDataParallel:
    """The audio side's gradient buffers: summed over the world, scaled once by whoever knows the token count."""
    config = copy.copy(lm_config)
    # This flag makes DDP's own gradient factor 1, i.e. a pure sum.
    config.calculate_per_token_loss = True
    return DistributedDataParallel(
        config, _ddp_config(distributed_optimizer, overlap=False), front, pg_collection=groups.front
    )


def _ddp_config(distributed_optimizer: bool, overlap: bool) -> DistributedDataParallelConfig:
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed_optimizer,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and distributed_optimizer,
        # The norm is checked over all ranks before the optimizer steps (AudioFlamingoOptimizer.step_checked).
        check_for_nan_in_grad=False,
    )
