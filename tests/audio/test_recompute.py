"""What is recomputed runs twice, however deep it asks for that, and draws the same random numbers."""

import torch
from torch import Tensor

from megatron_af.audio.recompute import recomputed


def test_nested_recomputation_runs_everything_twice_and_gives_the_same_gradient() -> None:
    calls: list[str] = []

    def inner(x: Tensor) -> Tensor:
        calls.append("inner")
        return (x * torch.rand(x.shape)).sin()

    def outer(x: Tensor) -> Tensor:
        calls.append("outer")
        return recomputed(inner, x).exp() + recomputed(inner, x)

    x = torch.linspace(-1, 1, 8, requires_grad=True)
    torch.manual_seed(3)
    recomputed(outer, x).sum().backward()
    assert calls == ["outer", "inner", "inner"] * 2
    found, x.grad = x.grad, None
    torch.manual_seed(3)
    (inner(x).exp() + inner(x)).sum().backward()
    assert torch.equal(found, x.grad)


def test_another_call_behind_it_recomputes_for_itself() -> None:
    calls: list[int] = []

    def square(x: Tensor) -> Tensor:
        calls.append(1)
        return x * x.sin()

    x = torch.ones(3, requires_grad=True)
    recomputed(square, recomputed(square, x)).sum().backward()
    assert len(calls) == 4
