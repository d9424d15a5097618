"""Encode-ahead: audio tokens are made before the pipeline schedule starts and finished after it ends.

For one optimizer step, inside each model-parallel group (tensor x pipeline):

1. every rank runs encoder and transformation layers on the clips it owns (``StepAudio.owners``);
2. the audio tokens are all-gathered, so that every stage can read every clip;
3. any pipeline schedule runs; each micro-batch reads its tokens from a leaf tensor;
4. the leaves' gradients are summed over the group and handed back to the owners (reduce-scatter);
5. each owner finishes the backward pass of its clips, and the audio side's gradients are summed over the world.

So the encoder never sits on a pipeline stage, the schedules need no change, and audio never travels with
the hidden states between stages.

Shapes: T packed audio tokens, L audio tokens of a row (padded), B rows, D audio width, N added rows, H hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_af.data.batch import AudioKeys, StepAudio
from megatron_af.parallel.collectives import all_gather, reduce_scatter
from megatron_af.parallel.groups import Groups
from megatron_af.parallel.transfer import send, there


class Front(Protocol):
    """What is run ahead: ``megatron_af.model.AudioFront``."""

    tokens_per_window: int
    added_rows: Tensor

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]: ...

    def __call__(self, features_WLD: Tensor, windows: Sequence[int]) -> Tensor: ...


class EncodeAhead:
    """Carries audio tokens of one step from their owners to the schedule, and their gradients back."""

    def __init__(
        self,
        front: DistributedDataParallel,
        groups: Groups,
        device: torch.device,
        features: Callable[[StepAudio, Sequence[int]], Tensor],
    ) -> None:
        """
        Args:
            features: gives encoder features of a step's clips (``ClipFeatures``).
        """
        self._ddp = front
        self._front: Front = front.module
        self._groups = groups
        self._device = device
        self._features = features
        self._audio_trains = any(p.requires_grad for n, p in self._front.named_parameters() if n != "added_rows")
        self._rows_train = self._front.added_rows.requires_grad
        self._own_TD: Tensor | None = None
        self._gradient_TD: Tensor | None = None
        self.added_rows_NH = self._front.added_rows.detach()

    def forward(self, audio: StepAudio, clips_of_rows: Sequence[Sequence[tuple[int, ...]]]) -> "StepKeys":
        """Encode this rank's clips and gather the step's tokens.

        Args:
            clips_of_rows: per micro-batch and row, the clips it hears.

        Gradients of tokens and of added rows are summed over micro-batches in float32, whatever the precision.
        """
        tokens_per_window = self._front.tokens_per_window
        group, size = self._groups.model, self._groups.model_size
        own_windows = [audio.clip_windows[clip] for clip in audio.owners[self._groups.model_rank]]
        with torch.set_grad_enabled(self._audio_trains and torch.is_grad_enabled()):
            self._own_TD = self._front(self._features(audio, own_windows), own_windows)

        # Where each clip's tokens start in the gathered buffer: owners' shares, each padded to the largest.
        shares = [sum(audio.clip_windows[c] for c in clips) * tokens_per_window for clips in audio.owners]
        self._share = max(1, *shares)
        start_of_clip = {}
        for owner, clips in enumerate(audio.owners):
            start = owner * self._share
            for clip in clips:
                start_of_clip[clip] = start
                start += audio.clip_windows[clip] * tokens_per_window

        width = self._own_TD.shape[1]
        mine_TD = self._own_TD.new_zeros(self._share, width)
        mine_TD[: self._own_TD.shape[0]] = self._own_TD.detach()
        if size > 1:
            all_TD = mine_TD.new_empty(size * self._share, width)
            all_gather(all_TD, mine_TD, group)
        else:
            all_TD = mine_TD

        audio_trains = self._audio_trains and torch.is_grad_enabled()
        self._gradient_TD = torch.zeros_like(all_TD, dtype=torch.float32) if audio_trains else None
        layouts = []
        for clips_of_row in clips_of_rows:
            index_BL, audio_of_BL = key_layout(clips_of_row, audio.clip_windows, start_of_clip, tokens_per_window)
            layouts.append((index_BL.t(), audio_of_BL))
        send([index_LB for index_LB, _ in layouts], self._device)
        self.added_rows_NH = self._front.added_rows.detach().clone().float()
        self.added_rows_NH.requires_grad_(self._rows_train and torch.is_grad_enabled())
        return StepKeys(all_TD, self._gradient_TD, layouts)

    def backward(self) -> None:
        """Hand the leaves' gradients to the owners and finish the backward pass of the audio side."""
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        if self._audio_trains:
            assert self._own_TD is not None
            size = self._groups.model_size
            # Gradients of several stages and tensor ranks are summed, so they travel in float32.
            all_TD = self._gradient_TD
            assert all_TD is not None
            if size > 1:
                mine_TD = torch.empty(self._share, all_TD.shape[1], device=self._device)
                reduce_scatter(mine_TD, all_TD, self._groups.model)
            else:
                mine_TD = all_TD
            if self._own_TD.requires_grad:
                outputs.append(self._own_TD)
                gradients.append(mine_TD[: self._own_TD.shape[0]].to(self._own_TD.dtype))
        if self._rows_train:
            rows_grad = self.added_rows_NH.grad
            outputs.append(self._front.added_rows.float() * 1)  # a non-leaf, so that the DDP hooks of the rows fire
            gradients.append(torch.zeros_like(self.added_rows_NH) if rows_grad is None else rows_grad)
        if outputs:
            torch.autograd.backward(outputs, gradients)
        self._own_TD, self._gradient_TD = None, None

    def finish(self, num_tokens: Tensor) -> None:
        """Sum the audio side's gradients over the world and divide by the global count of supervised tokens."""
        self._ddp.finish_grad_sync()
        self._ddp.scale_gradients(1.0 / torch.clamp(num_tokens, min=1))


class StepKeys:
    """What each micro-batch of a step hears, copied out of the step's tokens when it is asked for.

    A schedule asks for a micro-batch once on each of its stages: so many tokens are in float32 as it has under way.
    """

    def __init__(self, all_TD: Tensor, gradient_TD: Tensor | None, layouts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """
        Args:
            gradient_TD: receives the gradients; None: there are none, and tokens keep their precision.
            layouts: of each micro-batch ``index_LB`` of its keys and their ``audio_of_BL``.
        """
        self._all_TD, self._gradient_TD, self._layouts = all_TD, gradient_TD, layouts

    def __len__(self) -> int:
        return len(self._layouts)

    def audio_of(self, micro_batch: int) -> Tensor:
        """``audio_of_BL`` of its keys, on the host."""
        return self._layouts[micro_batch][1]

    def __getitem__(self, micro_batch: int) -> AudioKeys:
        index_LB, audio_of_BL = self._layouts[micro_batch]
        index_LB = there(index_LB, self._all_TD.device)
        tokens_LBD = self._all_TD[index_LB]
        if self._gradient_TD is not None:
            tokens_LBD = tokens_LBD.float().requires_grad_()
            hand_over = partial(_hand_over, self._gradient_TD, index_LB)
            tokens_LBD.register_post_accumulate_grad_hook(hand_over)  # type: ignore[no-untyped-call]
        return AudioKeys(tokens_LBD=tokens_LBD, audio_of_BL=audio_of_BL)


def _hand_over(gradient_TD: Tensor, index_LB: Tensor, tokens_LBD: Tensor) -> None:
    """Add the gradient that a micro-batch's tokens just got to that of the step's, and free it."""
    assert tokens_LBD.grad is not None
    # Padding keys point at token 0 with a gradient of exactly zero.
    gradient_TD.index_add_(0, index_LB.flatten(), tokens_LBD.grad.flatten(0, 1).float())
    tokens_LBD.grad = None


def key_layout(
    clips_of_row: Sequence[tuple[int, ...]],
    clip_windows: tuple[int, ...],
    start_of_clip: dict[int, int],
    tokens_per_window: int,
) -> tuple[Tensor, Tensor]:
    """Place of every key in the gathered buffer, and the audio of its row it belongs to (-1: padding)."""
    lengths = [sum(clip_windows[c] for c in clips) * tokens_per_window for clips in clips_of_row]
    longest = max(1, *lengths)  # a micro-batch without audio keeps one invisible key: kernels want no empty axis
    index_BL = torch.zeros(len(clips_of_row), longest, dtype=torch.int64)
    audio_of_BL = torch.full((len(clips_of_row), longest), -1, dtype=torch.int32)
    for row, clips in enumerate(clips_of_row):
        end = 0
        for audio, clip in enumerate(clips):
            begin, end = end, end + clip_windows[clip] * tokens_per_window
            start = start_of_clip[clip]
            index_BL[row, begin:end] = torch.arange(start, start + end - begin)
            audio_of_BL[row, begin:end] = audio
    return index_BL, audio_of_BL
