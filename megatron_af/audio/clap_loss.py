"""Contrastive losses over the global batch: AF-CLAP's, and the plain symmetric one of CLIP.

    loss_B = af_clap_loss(audio_BD, positives_PD, positive_of_P, negatives_ND, negative_of_N, scale, group)
    (loss_B.sum() / global_batch).backward()        # gradients of all ranks are to be summed, not averaged

AF-CLAP (Ghosh et al. 2025, Audio Flamingo 2, section 3; s(u, v) = exp(u.v / temperature))::

    L = -1/B sum_i log [ sum_m s(positive_im, audio_i)
                         / ( sum_n s(negative_in, audio_i) + sum_j sum_m s(positive_jm, audio_i) ) ]

Positives are summed inside the logarithm: a sample is content with one that fits. With a term for each (``each``)

    L = -1/B sum_i 1/M_i sum_m log [ s(positive_im, audio_i) / (the same denominator) ]

all of them have to fit, which is what keeps paraphrases near. Both ask which caption an audio has; with ``symmetric``
each caption is asked for its audio, too, as in the other half of CLIP's loss, which is added::

    -1/B sum_i 1/M_i sum_m log [ s(positive_im, audio_i) / sum_j s(positive_im, audio_j) ]

A sample's hard negatives stand in its own denominator only. Numbers of positives and negatives differ from sample to
sample. Only the sums over all positives, and over all audios, of the global batch are dense; they are evaluated in
chunks that the backward pass recomputes, so memory is linear in the batch.

Shapes: B local samples, P local positives, N local negatives, D joint dim, G rows of all ranks. Embeddings have
length 1; everything is computed in float32 (float64 stays).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_af.parallel.collectives import all_gather

CHUNK = 1024
"""Columns of the similarity matrix that exist at a time."""


def exact(x: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def af_clap_loss(
    audio_BD: Tensor,
    positives_PD: Tensor,
    positive_of_P: Tensor,
    negatives_ND: Tensor,
    negative_of_N: Tensor,
    scale: Tensor,
    group: dist.ProcessGroup | None = None,
    chunk: int = CHUNK,
    each: bool = False,
    symmetric: bool = False,
) -> Tensor:
    """Losses of this rank's samples, [B]. A collective, and so is its backward pass.

    Args:
        positive_of_P: index of the local sample that each positive describes; every sample has at least one.
        negative_of_N: the same for hard negatives, of which a sample may have none.
        scale: 1 / temperature, a scalar.
        group: ranks that share the global batch; None: this rank is alone.
        each: a term for each positive, in place of one for their sum.
        symmetric: each positive also has to find its audio among those of the batch.
    """
    audio_BD, positives_PD, negatives_ND = (exact(x) for x in (audio_BD, positives_PD, negatives_ND))
    own_P = scale * (audio_BD[positive_of_P] * positives_PD).sum(-1)
    hard_N = scale * (audio_BD[negative_of_N] * negatives_ND).sum(-1)
    everyone_B = logsumexp_of_products(audio_BD, gather_rows(positives_PD, group), scale, chunk)
    denominator_B = _logaddexp_at(everyone_B, hard_N, negative_of_N)
    own_B = (_mean_at if each else _logsumexp_at)(own_P, positive_of_P, len(audio_BD))
    if not symmetric:
        return denominator_B - own_B
    audios_P = logsumexp_of_products(positives_PD, gather_rows(audio_BD, group), scale, chunk)
    return denominator_B - own_B + _mean_at(audios_P - own_P, positive_of_P, len(audio_BD))


def clip_loss(
    audio_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor,
    group: dist.ProcessGroup | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Symmetric cross entropies (Radford et al. 2021) of this rank's samples, [B]; one text per audio. A collective."""
    audio_BD, text_BD = exact(audio_BD), exact(text_BD)
    own_B = scale * (audio_BD * text_BD).sum(-1)
    texts_B = logsumexp_of_products(audio_BD, gather_rows(text_BD, group), scale, chunk)
    audios_B = logsumexp_of_products(text_BD, gather_rows(audio_BD, group), scale, chunk)
    return (texts_B + audios_B) / 2 - own_B


def logsumexp_of_products(query_BD: Tensor, key_GD: Tensor, scale: Tensor, chunk: int) -> Tensor:
    """``logsumexp(scale * query @ key.T, 1)`` without ever holding more than ``chunk`` columns of the product."""

    def part(query_BD: Tensor, key_CD: Tensor, scale: Tensor) -> Tensor:
        return torch.logsumexp(scale * (query_BD @ key_CD.t()), 1)

    if len(key_GD) <= chunk:
        return part(query_BD, key_GD, scale)
    parts = [checkpoint(part, query_BD, key_CD, scale, use_reentrant=False) for key_CD in torch.split(key_GD, chunk)]
    return torch.logsumexp(torch.stack(parts), 0)


def gather_rows(rows_PD: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Rows of all ranks, in rank order; the gradient of a row is summed over the ranks that used it.

    Numbers of rows may differ between ranks.
    """
    if group is None or group.size() == 1:
        return rows_PD
    gathered: Tensor = _GatherRows.apply(rows_PD, group)  # type: ignore[no-untyped-call]
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_PD: Tensor, group: dist.ProcessGroup) -> Tensor:
        counts = torch.zeros(group.size(), dtype=torch.int64, device=rows_PD.device)
        all_gather(counts, counts.new_tensor([len(rows_PD)]), group)
        ctx.counts, ctx.group = counts.tolist(), group
        most = max(ctx.counts)
        padded = rows_PD.new_zeros(most, *rows_PD.shape[1:])
        padded[: len(rows_PD)] = rows_PD
        everyone = padded.new_empty(group.size() * most, *rows_PD.shape[1:])
        all_gather(everyone, padded, group)
        shares = torch.split(everyone, most)
        return torch.cat([share[:count] for share, count in zip(shares, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient_GD = gradients[0].contiguous()
        dist.all_reduce(gradient_GD, group=ctx.group)
        rank = ctx.group.rank()
        start = sum(ctx.counts[:rank])
        return gradient_GD[start : start + ctx.counts[rank]], None


def _mean_at(value_K: Tensor, index_K: Tensor, size: int) -> Tensor:
    """``out[b] = mean of value[k] over index[k] == b``; every b occurs."""
    sum_B, count_B = value_K.new_zeros(size), value_K.new_zeros(size)
    return sum_B.index_add(0, index_K, value_K) / count_B.index_add(0, index_K, torch.ones_like(value_K))


def _logsumexp_at(value_K: Tensor, index_K: Tensor, size: int) -> Tensor:
    """``out[b] = log sum of exp(value[k]) over index[k] == b``; every b occurs."""
    top_B = value_K.new_full((size,), -torch.inf).scatter_reduce(0, index_K, value_K.detach(), "amax")
    sum_B = value_K.new_zeros(size).index_add(0, index_K, (value_K - top_B[index_K]).exp())
    return top_B + sum_B.log()


def _logaddexp_at(base_B: Tensor, value_K: Tensor, index_K: Tensor) -> Tensor:
    """``out[b] = log(exp(base[b]) + sum of exp(value[k]) over index[k] == b)``; a b without k keeps its base."""
    top_B = base_B.detach().scatter_reduce(0, index_K, value_K.detach(), "amax")
    sum_B = (base_B - top_B).exp().index_add(0, index_K, (value_K - top_B[index_K]).exp())
    return top_B + sum_B.log()
