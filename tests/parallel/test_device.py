"""The device is found once, and megatron-core runs without CUDA."""

import importlib.util
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_af.config import ConfigError
from megatron_af.parallel import device as device_module
from megatron_af.parallel.device import LITERAL_SITES, Device, current_device, make_megatron_portable
from tests.distributed import RankError, run_distributed


def test_choices_follow_from_the_device():
    cpu, gpu = Device(torch.device("cpu")), Device(torch.device("cuda", 3))
    assert (cpu.is_gpu, cpu.backend, cpu.dali, cpu.dali_id) == (False, "gloo", "cpu", None)
    assert (gpu.is_gpu, gpu.backend, gpu.dali, gpu.dali_id) == (True, "nccl", "gpu", 3)
    assert current_device().is_gpu == torch.cuda.is_available()


@pytest.mark.parametrize("asked", ["", "te", "torch"])
@pytest.mark.parametrize("problem", ["", "is not installed"])
def test_layers_are_those_that_there_are(asked, problem, monkeypatch):
    monkeypatch.setattr(device_module, "transformer_engine_problem", lambda: problem)
    cpu, gpu = Device(torch.device("cpu")), Device(torch.device("cuda", 0))
    for device, missing in ((cpu, "needs a GPU, and there is none"), (gpu, problem)):
        if asked == "te" and missing:
            with pytest.raises(ConfigError, match=f"layers = te: Transformer Engine {missing}; set layers to torch"):
                device.layers(asked)
        else:
            assert device.layers(asked) == ("te" if asked == "te" or not (asked or missing) else "torch")


@pytest.mark.parametrize(("there", "told"), [(["clang++"], ""), ([], "torch.compile needs g++ or clang++ on the path")])
def test_a_compiler_is_looked_for(there, told, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in there:
        (tmp_path / name).touch(mode=0o755)
    problem = device_module.compiler_problem()
    assert told in problem and bool(told) == bool(problem)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has its functions compiled")
def test_megatron_core_is_imported_without_torchs_compiler():
    program = """
        import sys, torch
        compile = torch.compile
        from megatron_af.parallel.device import make_megatron_portable
        make_megatron_portable()
        import megatron_af.train.trainer
        from megatron.core.fusions.fused_bias_swiglu import swiglu
        assert torch.compile is compile and "torch._inductor.compile_fx" not in sys.modules
        x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        assert torch.equal(swiglu(x), torch.nn.functional.silu(x[:, :2]) * x[:, 2:])
        assert "torch._inductor.compile_fx" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_broken_transformer_engine_is_as_good_as_none(tmp_path):
    """megatron-core alone would not import."""
    folder = tmp_path / "transformer_engine"
    (folder / "pytorch").mkdir(parents=True)
    (folder / "__init__.py").write_text("from . import pytorch")
    (folder / "pytorch" / "__init__.py").write_text("raise RuntimeError('no libcudnn here')")
    program = """
        from megatron_af.parallel.device import make_megatron_portable, transformer_engine_problem
        make_megatron_portable()
        from megatron.core.extensions.transformer_engine import HAVE_TE
        print(HAVE_TE, transformer_engine_problem())
    """
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    told = "False is installed and cannot be imported (RuntimeError: no libcudnn here)"
    assert done.stdout.strip() == told, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is what it is for")
def test_without_a_gpu_a_working_transformer_engine_is_left_alone(tmp_path):
    """Its optimizer is made on a GPU, and so is its norm of gradients."""
    folder = tmp_path / "transformer_engine" / "pytorch"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("from . import optimizers")
    names = "FusedAdam FusedSGD multi_tensor_applier multi_tensor_l2norm multi_tensor_scale multi_tensor_scale_tensor"
    (folder / "optimizers.py").write_text("\n".join(f"def {name}(*a, **k): ..." for name in names.split()))
    program = """
        from megatron_af.parallel.device import make_megatron_portable, transformer_engine_problem
        make_megatron_portable()
        from megatron.core import optimizer
        from megatron.core.optimizer import clip_grads, distrib_optimizer
        found = optimizer.Adam, clip_grads.l2_norm_impl, clip_grads.multi_tensor_applier, distrib_optimizer.Adam
        print({one.__module__.partition(".")[0] for one in found}, [transformer_engine_problem()])
    """
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    told = done.stdout.strip()
    assert "transformer_engine" not in told and told.endswith("['']"), told + done.stderr


def test_a_gpu_attends_without_plans_for_each_length(monkeypatch):
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "2")
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        assert device_module._gpu.__wrapped__() == Device(torch.device("cuda", 2))
        assert current == [torch.device("cuda", 2)] and not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.skipif(not hasattr(device_module._C_LIBRARY, "malloc_trim"), reason="a C library without malloc_trim")
def test_freed_memory_goes_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def holes() -> list[torch.Tensor]:
        """Half of 256 MiB of small tensors: the other half is free and stays resident."""
        return [torch.ones(1 << 12) for _ in range(1 << 14)][::2]

    kept = holes()
    before = resident()
    Device(torch.device("cpu")).return_freed_memory()
    assert before - resident() > 64 << 20
    assert all(tensor.sum() == 1 << 12 for tensor in kept[::1000])


def test_headers_of_python_are_looked_for(monkeypatch, tmp_path):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device_module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert f"torch.compile needs {tmp_path}/Python.h; install python3." in device_module.compiler_problem()
    (tmp_path / "Python.h").touch()
    assert not device_module.compiler_problem()


def literals_by_function(module: str) -> dict[str, list[object]]:
    """Qualified name -> device literals of every function in the module's source as installed."""
    found: dict[str, list[object]] = {}

    def walk(code: types.CodeType) -> None:
        found[code.co_qualname] = [
            constant
            for constant in code.co_consts
            if not isinstance(constant, types.CodeType) and device_module._constant(constant, "elsewhere") != constant
        ]
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                walk(constant)

    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    walk(compile(Path(spec.origin).read_text(), spec.origin, "exec"))
    return found


@pytest.mark.parametrize("module", LITERAL_SITES)
def test_every_listed_site_holds_a_literal_in_the_pinned_megatron(module):
    literals = literals_by_function(module)
    for name in LITERAL_SITES[module]:
        assert literals.get(name), f"{module}.{name} holds no device literal any more"


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is retargeted with CUDA")
def test_a_site_without_its_literal_is_an_error():
    with pytest.raises(RuntimeError, match=r"clip_by_nothing is not a function of this megatron-core"):
        device_module._retarget("megatron.core.optimizer.clip_grads", "clip_by_nothing", "cpu")
    with pytest.raises(RuntimeError, match=r"divide holds no device literal"):
        device_module._retarget("megatron.core.utils", "divide", "cpu")


def retargeted_device_type(rank: int, world_size: int) -> tuple[str, ...]:
    make_megatron_portable()
    make_megatron_portable(target="meta")
    from megatron.core.pipeline_parallel import schedules

    constants = schedules.forward_backward_no_pipelining.__code__.co_consts
    devices = (current_device().torch, torch.cuda.current_device(), torch.ones(1).cuda().device)
    return *(device.type for device in devices), str("meta" in constants)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is retargeted with CUDA")
def test_meta_stands_in_for_an_accelerator():
    assert run_distributed(retargeted_device_type, 1) == [("meta", "meta", "meta", "True")]
    assert torch.ones(1).cuda().device.type == "cpu", "the parent process keeps the CPU"


def sum_of_ranks(rank: int, world_size: int, factor: int) -> dict[str, torch.Tensor]:
    total = torch.tensor([rank * factor])
    dist.all_reduce(total)
    return {"total": total}


def fail_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("the reason")
    dist.barrier()


def hang_on_one(rank: int, world_size: int) -> None:
    if rank == 0:
        dist.recv(torch.zeros(1), src=1)
    else:
        import time

        time.sleep(600)


@pytest.mark.slow
def test_harness_returns_one_value_per_rank():
    results = run_distributed(sum_of_ranks, 3, 10, timeout=30)
    assert [result["total"].item() for result in results] == [30, 30, 30]


@pytest.mark.slow
def test_harness_raises_with_the_failing_ranks_traceback():
    with pytest.raises(RankError, match=r"(?s)failed-1.*fail_on_one.*ValueError: the reason"):
        run_distributed(fail_on_one, 2, timeout=30)


@pytest.mark.slow
def test_harness_ends_ranks_that_hang():
    with pytest.raises(RankError, match=r"(?s)not finished within.*hanging-0.*hang_on_one"):
        run_distributed(hang_on_one, 2, timeout=2)
