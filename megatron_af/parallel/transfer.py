"""From the host to the device: what a step needs in one copy that nothing waits for.

    send([rows.ids_BS, rows.segment_BS, …], device)      # once a step; the host keeps its own, to decide by values
    ids_BS = there(rows.ids_BS, device)                  # what was sent, or a copy made now

A tensor of its own would be a copy of its own, and out of ordinary memory the host waits for each of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED_BYTES = 16
"""Where a tensor begins in the packed copy: a multiple of every element's size."""


def send(tensors: Sequence[Tensor], device: torch.device) -> None:
    """Copy tensors of the host to ``device`` together; :func:`there` finds them. On the CPU there is nothing to do."""
    if device.type != "cpu":
        for tensor, copy in zip(tensors, copies(tensors, device), strict=True):
            tensor.sent = copy  # type: ignore[attr-defined]


def there(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on ``device``: its copy that was sent, or one made now."""
    sent: Tensor | None = getattr(tensor, "sent", None)
    return tensor.to(device) if sent is None or sent.device != device else sent


def copies(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Views of one copy on ``device``, of the tensors' types and shapes."""
    begins = [0]
    for tensor in tensors:
        begins.append(begins[-1] + -(-tensor.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES)
    packed = torch.empty(begins[-1], dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    for tensor, begin in zip(tensors, begins, strict=False):
        _view(packed, begin, tensor).copy_(tensor)
    arrived = packed.to(device, non_blocking=True)
    return [_view(arrived, begin, tensor) for tensor, begin in zip(tensors, begins, strict=False)]


def _view(packed: Tensor, begin: int, like: Tensor) -> Tensor:
    return packed[begin : begin + like.nbytes].view(like.dtype).view(like.shape)
