"""What a step really takes: bytes of all live tensors at their most, and operations, on the CPU."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the storages that exist, of tensors made while it is on and of those it is told of.

    Args:
        device: type of the device that is looked at. Of tensors without values, a number that is asked for is 1.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def tell(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and self._device == "meta":
            return 1.0
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self._device:
                self.tell(leaf)
        return out


def addmm_in_place(out: Any, first: Any, second: Any, *_: Any, **__: Any) -> int:
    """Operations of a product that torch's counter knows in its other forms only."""
    return int(2 * first[0] * first[1] * second[1])
