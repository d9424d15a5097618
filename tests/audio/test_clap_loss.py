"""AF-CLAP's loss against a dense statement in float64: value and gradients, ragged, on 1, 2 and 4 ranks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_af.audio.clap_loss import af_clap_loss, clip_loss
from tests.distributed import run_distributed

DIM = 16


def unit(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def owners(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def dense(
    audio: Tensor, positives: Tensor, positive_of: Tensor, negatives: Tensor, negative_of: Tensor, scale: Tensor,
    each: bool = False, symmetric: bool = False,
) -> Tensor:  # fmt: skip
    """The formulas, word by word."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(audio)):
        everyone = (scale * positives @ audio[i]).exp()
        own = everyone[positive_of == i]
        hard = (scale * negatives[negative_of == i] @ audio[i]).exp().sum()
        for term in own if each else [own.sum()]:
            total = total - torch.log(term / (hard + everyone.sum())) / (len(own) if each else 1)
        for caption in positives[positive_of == i] if symmetric else []:
            found = (scale * caption @ audio[i]).exp() / (scale * audio @ caption).exp().sum()
            total = total - torch.log(found) / len(own)
    return total / len(audio)


CASES = {
    "ragged": ([3, 1, 2, 5, 1, 1, 4, 2], [2, 0, 6, 1, 0, 0, 3, 3]),
    "one positive, no negative": ([1] * 8, [0] * 8),
    "one positive, one negative": ([1] * 8, [1] * 8),
    "many": ([4] * 8, [12] * 8),
}


def inputs(case: str) -> tuple[list[int], list[int], Tensor, Tensor, Tensor, Tensor]:
    positives, negatives = CASES[case]
    scale = torch.tensor(1 / 0.07, dtype=torch.float64)
    return positives, negatives, unit(8, 0), unit(sum(positives), 1), unit(sum(negatives), 2), scale


def expected(case: str, **form: bool) -> tuple[Tensor, list[Tensor]]:
    positive_counts, negative_counts, *tensors = inputs(case)
    leaves = [t.requires_grad_() for t in tensors]
    audio, positives, negatives, scale = leaves
    loss = dense(audio, positives, owners(positive_counts), negatives, owners(negative_counts), scale, **form)
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def _share(
    rank: int, world: int, case: str, dtype: torch.dtype, chunk: int, **form: bool
) -> tuple[Tensor, list[Tensor]]:
    """Each rank holds an unequal run of the samples; the last rank has most."""
    positive_counts, negative_counts, audio, positives, negatives, scale = inputs(case)
    bounds = [0, 1, 2, 4, 8] if world == 4 else [0, 3, 8] if world == 2 else [0, 8]
    begin, end = bounds[rank], bounds[rank + 1]

    def own(rows: Tensor, counts: list[int]) -> Tensor:
        return rows[sum(counts[:begin]) : sum(counts[:end])]

    leaves = [audio[begin:end], own(positives, positive_counts), own(negatives, negative_counts), scale]
    leaves = [leaf.to(dtype).detach().clone().requires_grad_() for leaf in leaves]
    group = torch.distributed.group.WORLD if world > 1 else None
    loss = af_clap_loss(
        leaves[0], leaves[1], owners(positive_counts[begin:end]), leaves[2], owners(negative_counts[begin:end]),
        leaves[3], group, chunk, **form,
    )  # fmt: skip
    loss = loss.sum() / 8
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def _compare(results: list[tuple[Tensor, list[Tensor]]], case: str, tolerance: float, **form: bool) -> None:
    loss, gradients = expected(case, **form)
    torch.testing.assert_close(sum(r[0] for r in results).double(), loss, rtol=tolerance, atol=tolerance)
    for i, gradient in enumerate(gradients):
        parts = [r[1][i].double() for r in results]
        ours = sum(parts) if gradient.ndim == 0 else torch.cat(parts)
        torch.testing.assert_close(
            ours, gradient, rtol=0, atol=tolerance * max(1.0, float(gradient.abs().max() if gradient.numel() else 0))
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1024, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_the_dense_statement(case, chunk, dtype, tolerance, each, symmetric):
    form = {"each": each, "symmetric": symmetric}
    _compare([_share(0, 1, case, dtype, chunk, **form)], case, tolerance, **form)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_the_dense_statement_over_ranks(case, world, each, symmetric):
    form = {"each": each, "symmetric": symmetric}
    _compare(run_distributed(_share, world, case, torch.float64, 5, **form), case, 1e-12, **form)


def test_one_positive_that_fits_is_enough_for_their_sum_and_not_for_each():
    """A sample whose second caption lies across: the sum hardly pulls at it, each pulls at it as at the first."""
    audio = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    captions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    pulls = {}
    for each in (False, True):
        leaf = captions.clone().requires_grad_()
        owner, none = torch.tensor([0, 0, 1]), torch.zeros(0, dtype=torch.long)
        af_clap_loss(audio, leaf, owner, leaf[:0], none, torch.tensor(20.0), each=each)[0].backward()
        pulls[each] = -leaf.grad[1, 0].item()
    assert abs(pulls[False]) < 1e-6 and pulls[True] > 5


def test_one_positive_without_negatives_is_one_direction_of_the_plain_loss_or_both():
    _, _, audio, positives, negatives, scale = inputs("one positive, no negative")
    index = torch.arange(8)
    ours = af_clap_loss(audio, positives, index, negatives, index[:0], scale).mean()
    torch.testing.assert_close(ours, F.cross_entropy(scale * audio @ positives.T, index))
    both = af_clap_loss(audio, positives, index, negatives, index[:0], scale, symmetric=True)
    torch.testing.assert_close(both, 2 * clip_loss(audio, positives, scale))


def test_a_lone_sample_without_negatives_has_nothing_to_learn():
    audio, text, index = unit(1, 0).requires_grad_(), unit(1, 1), torch.zeros(1, dtype=torch.long)
    loss = af_clap_loss(audio, text, index, text[:0], index[:0], torch.tensor(10.0)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert audio.grad.abs().max() < 1e-9


def test_large_scales_stay_finite():
    """Opposite vectors at the largest scale CLIP allows: exp(100) against exp(-100)."""
    audio = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    index = torch.arange(2)
    scale = torch.tensor(100.0)
    loss = af_clap_loss(audio, -audio.detach(), index, audio.detach(), index, scale).sum()
    loss.backward()
    assert loss.isfinite()
    assert audio.grad.isfinite().all()


def _plain(rank: int, world: int) -> tuple[Tensor, list[Tensor]]:
    bounds = [0, 3, 8] if world == 2 else [0, 8]
    own = slice(bounds[rank], bounds[rank + 1])
    leaves = [unit(8, 0)[own].clone().requires_grad_(), unit(8, 1)[own].clone().requires_grad_()]
    group = torch.distributed.group.WORLD if world > 1 else None
    loss = clip_loss(*leaves, torch.tensor(14.0), group, chunk=3).sum() / 8
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_plain_loss_is_torchs_symmetric_cross_entropy(world):
    audio, text = unit(8, 0).requires_grad_(), unit(8, 1).requires_grad_()
    logits, index = 14.0 * audio @ text.T, torch.arange(8)
    reference = (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2
    reference.backward()
    results = run_distributed(_plain, world) if world > 1 else [_plain(0, 1)]
    torch.testing.assert_close(sum(r[0] for r in results), reference.detach())
    for i, leaf in enumerate((audio, text)):
        torch.testing.assert_close(torch.cat([r[1][i] for r in results]), leaf.grad, rtol=0, atol=1e-12)
