"""Where a process computes, and megatron-core made to run there without CUDA.

    device = current_device()          # cuda:LOCAL_RANK with NCCL, or the CPU with gloo; found once
    device.layers(config.layers)       # whose linears and norms: "te" or "torch"
    make_megatron_portable()           # before any module of megatron-core runs; nothing changes with CUDA

megatron-core 0.19.2 has no knob for the device: it asks ``torch.cuda`` for the current one and writes the
literal ``"cuda"`` (or ``"torch.cuda.FloatTensor"``) into some functions. Without CUDA the few ``torch.cuda``
entry points it calls answer for the CPU, and the literals are replaced in the code objects of exactly the
functions in :data:`LITERAL_SITES`. The version is pinned: a listed function without its literal raises.

Whether there is Transformer Engine is asked here alone. Where it is absent, megatron-core puts a mock in its place that
is silently built into models; where it is half-installed, importing megatron-core raises.
"""

import ctypes
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import re
import resource
import shutil
import sys
import sysconfig
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_af.config import ConfigError
from megatron_af.cores import usable_cores

TorchDevice = torch.device

LITERAL_SITES: dict[str, tuple[str, ...]] = {
    "megatron.core.pipeline_parallel.schedules": (
        "forward_backward_no_pipelining",
        "forward_backward_pipelining_with_interleaving",
        "forward_backward_pipelining_without_interleaving",
    ),
    "megatron.core.optimizer.clip_grads": (
        "get_grad_norm_fp32",
        "clip_grad_by_total_norm_fp32",
        "count_zeros_fp32",
    ),
    "megatron.core.optimizer.optimizer": (
        "MegatronOptimizer.has_grad_norm_group",
        "MixedPrecisionOptimizer.__init__",
        "Float16OptimizerWithFloat16Params.__init__",
        "FP32Optimizer.__init__",
    ),
    "megatron.core.optimizer.distrib_optimizer": (
        "DistributedOptimizer.__init__",
        "DistributedOptimizer._build_model_and_main_param_groups",
    ),
    "megatron.core.optimizer.grad_scaler": ("MegatronGradScaler.__init__", "DynamicGradScaler.__init__"),
    "megatron.core.dist_checkpointing.exchange_utils": (
        "_get_empty_tensor_for_exchange",
        "exchange_loaded_tensors_gather_rounds",
    ),
    "megatron.core.dist_checkpointing.strategies.state_dict_saver": ("verify_global_md_reuse",),
}
"""Module of megatron-core -> functions that hold a device literal on a path this project takes."""


_C_LIBRARY = ctypes.CDLL(None)
"""glibc, whose ``malloc_trim`` others lack."""


@dataclass(frozen=True)
class Device:
    """One process's device and the choices that follow from it."""

    torch: TorchDevice

    @property
    def is_gpu(self) -> bool:
        return self.torch.type == "cuda"

    @property
    def backend(self) -> str:
        """Of ``torch.distributed``."""
        return "nccl" if self.is_gpu else "gloo"

    @property
    def dali(self) -> str:
        """Device name in DALI's operators."""
        return "gpu" if self.is_gpu else "cpu"

    @property
    def dali_id(self) -> int | None:
        """``device_id`` of a DALI pipeline; None keeps it off the GPU."""
        return self.torch.index if self.is_gpu else None

    @property
    def name(self) -> str:
        """Model name of the GPU; empty on the CPU."""
        return torch.cuda.get_device_name(self.torch) if self.is_gpu else ""

    @property
    def gpus(self) -> int:
        """That this process sees on its machine; on the CPU none."""
        return torch.cuda.device_count() if self.is_gpu else 0

    def make_current(self) -> None:
        """For the calling thread: CUDA keeps the current GPU by thread, and another one begins with the first GPU."""
        if self.is_gpu:
            torch.cuda.set_device(self.torch)

    def layers(self, asked: Literal["", "te", "torch"]) -> Literal["te", "torch"]:
        """Whose linears and norms the decoder is made of here.

        Args:
            asked: the configuration's ``layers``.

        Raises:
            ConfigError: Transformer Engine's were asked for, and this process cannot compute them.
        """
        if problem := self.layers_problem(asked):
            raise ConfigError("the decoder cannot be built", [problem])
        return asked or ("te" if self.is_gpu and not transformer_engine_problem() else "torch")

    def layers_problem(self, asked: str) -> str:
        """Why a configuration's ``layers`` cannot be had here, and the fix; empty where they can."""
        if asked != "te":
            return ""
        missing = "needs a GPU, and there is none" if not self.is_gpu else transformer_engine_problem()
        return f"layers = te: Transformer Engine {missing}; set layers to torch, or leave it out" if missing else ""

    def slower_layers(self, asked: str) -> str:
        """Why a GPU computes with torch's layers although nobody asked for them, and the remedy; empty where not."""
        if asked or not self.is_gpu or not (problem := transformer_engine_problem()):
            return ""
        return f"Transformer Engine {problem}: layers are torch's, without fused kernels. Set layers to torch if meant."

    def peak_memory_bytes(self) -> int:
        """Most memory this process has held: of the GPU where there is one, else resident."""
        if self.is_gpu:
            return torch.cuda.max_memory_allocated(self.torch)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def return_freed_memory(self) -> None:
        """Give back to the system what the C library's heap keeps of freed tensors; costs some milliseconds.

        Texts of another length every step leave holes in that heap that nothing fits into: without this a process on
        the CPU grows for thousands of steps. A GPU's memory has an allocator of its own.
        """
        if not self.is_gpu and hasattr(_C_LIBRARY, "malloc_trim"):
            _C_LIBRARY.malloc_trim(0)


_target: TorchDevice | None = None
"""Where megatron-core was made to run; None: as it is."""


def current_device() -> Device:
    """This process's device: the GPU of its ``LOCAL_RANK`` (which becomes current), or the CPU."""
    _heed_limit()
    return _gpu() if torch.cuda.is_available() else Device(_target or TorchDevice("cpu"))


@functools.cache
def _heed_limit() -> None:
    """torch would start a thread for each core of the machine, also in a container that may use a few of them."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


@functools.cache
def _gpu() -> Device:
    device = Device(TorchDevice("cuda", int(os.environ.get("LOCAL_RANK", 0))))
    device.make_current()
    # From Hopper on torch would rather attend by cuDNN, which makes a plan on the host for every shape that it has not
    # met, and lengths are ever new here: clips of a step, texts, an answer that grows.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return device


@functools.cache
def transformer_engine_problem() -> str:
    """Why Transformer Engine cannot be imported; empty where it can.

    One that is broken is hidden from this process: megatron-core then takes it for absent.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return "is not installed (the extra `gpu` of this package)"
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever its libraries meet first
        sys.modules["transformer_engine"] = None  # type: ignore[assignment]
        return f"is installed and cannot be imported ({type(error).__name__}: {error})"
    return ""


COMPILERS = ("g++", "clang++")


def compiler_problem() -> str:
    """Why ``compile`` cannot be had here, and the fix; empty where it can. Kernels of both devices start from C++, and
    are modules of Python."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(COMPILERS)
    if not any(map(shutil.which, wanted)):
        names = " or ".join(wanted)
        return f"compile = true: torch.compile needs {names} on the path; install one, or set compile to false"
    if not (header := Path(sysconfig.get_path("include"), "Python.h")).is_file():
        package = "python{}.{}-dev".format(*sys.version_info)
        return f"compile = true: torch.compile needs {header}; install {package}, or set compile to false"
    return ""


class _NoStream:
    """What ``torch.cuda.current_stream()`` returns where there are no streams: every method does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


_original_code: dict[types.FunctionType, types.CodeType] = {}


def make_megatron_portable(target: str = "cpu") -> None:
    """Let megatron-core run on ``target`` where CUDA is missing; does nothing where CUDA is available.

    ``target="meta"`` serves tests: under ``FakeTensorMode`` the meta device stands in for an accelerator, so
    that a tensor left on the CPU meets one that is not.

    Raises:
        RuntimeError: a function in :data:`LITERAL_SITES` is gone or holds no literal (another version).
    """
    global _target
    works = not transformer_engine_problem()
    if torch.cuda.is_available():
        return
    if works:
        _hide_transformer_engine()
    if _target == TorchDevice(target):
        return
    _target = TorchDevice(target)
    _import_uncompiled()
    _answer_for_cuda()
    for module, names in LITERAL_SITES.items():
        for name in names:
            _retarget(module, name, target)


def _hide_transformer_engine() -> None:
    """Where it imports without a GPU, megatron-core would take its optimizer and its norm of gradients, which need one.

    What is loaded of it would still be found by its whole name.
    """
    for name in list(sys.modules):
        if name.partition(".")[0] in ("transformer_engine", "transformer_engine_torch"):
            sys.modules[name] = None  # type: ignore[assignment]


def _import_uncompiled() -> None:
    """megatron-core, with the functions as they are that it would have compiled for a GPU.

    It asks for that while it is imported, and torch then imports its compiler: a third of what a process on the CPU
    waits for before it begins, for functions that it never calls.
    """
    compile = torch.compile
    setattr(torch, "compile", lambda function: function)  # noqa: B010 (torch's stubs know several signatures)
    try:
        importlib.import_module("megatron.core.jit")
    finally:
        setattr(torch, "compile", compile)  # noqa: B010


def _answer_for_cuda() -> None:
    """The ``torch.cuda`` entry points megatron-core calls, speaking for ``_target``."""
    rng = importlib.import_module("megatron.core.tensor_parallel.random")
    get_state = lambda device=None, clone=False, graph_safe=False: torch.get_rng_state()  # noqa: E731
    set_state = lambda state, device=None, graph_safe=False: torch.set_rng_state(state)  # noqa: E731
    answers: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            "current_device": lambda: _target,
            "synchronize": lambda device=None: None,
            "current_stream": lambda device=None: _NoStream(),
            "get_rng_state": get_state,
            "set_rng_state": set_state,
            "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        },
        torch.Tensor: {"cuda": lambda self, *args, **kwargs: self.to(_target)},
        rng: {"_get_cuda_rng_state": get_state, "_set_cuda_rng_state": set_state},
    }
    for owner, functions in answers.items():
        for name, function in functions.items():
            setattr(owner, name, function)
    # the tracker warns that the CPU generator moved, which here is its purpose
    logging.getLogger(rng.__name__).addFilter(lambda entry: "CPU RNG state changed" not in entry.getMessage())


def _retarget(module: str, qualified_name: str, target: str) -> None:
    found: Any = importlib.import_module(module)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    function = inspect.unwrap(getattr(found, "__func__", found))
    if not isinstance(function, types.FunctionType):
        raise RuntimeError(
            f"{module}.{qualified_name} is not a function of this megatron-core: "
            "the pinned version in pyproject.toml and LITERAL_SITES in megatron_af/parallel/device.py differ"
        )
    original = _original_code.setdefault(function, function.__code__)
    changed = _replaced(original, target)
    if changed is original:
        raise RuntimeError(
            f"{module}.{qualified_name} holds no device literal in this megatron-core: "
            "the pinned version in pyproject.toml and LITERAL_SITES in megatron_af/parallel/device.py differ"
        )
    function.__code__ = changed


def _replaced(code: types.CodeType, target: str) -> types.CodeType:
    constants = tuple(_constant(constant, target) for constant in code.co_consts)
    return code if constants == code.co_consts else code.replace(co_consts=constants)


def _constant(constant: Any, target: str) -> Any:
    if constant == "cuda":
        return target
    if isinstance(constant, str) and re.fullmatch(r"torch\.cuda\.\w+Tensor[, ]*", constant):
        return constant.replace("torch.cuda.", "torch." if target == "cpu" else f"torch.{target}.")
    if isinstance(constant, tuple | frozenset):
        return type(constant)(_constant(item, target) for item in constant)
    return _replaced(constant, target) if isinstance(constant, types.CodeType) else constant
