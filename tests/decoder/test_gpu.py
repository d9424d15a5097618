"""The decoder on a GPU, with torch's layers and with Transformer Engine's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_af.convert.language import LanguageFolder, load_language
from megatron_af.data.batch import AudioKeys
from megatron_af.decoder.attention import attention_by_stretch
from megatron_af.decoder.stretches import Sight
from megatron_af.parallel.device import current_device, transformer_engine_problem
from tests.conftest import requires_gpu
from tests.convert.qwen_folder import write_folder
from tests.decoder.toy import (
    HIDDEN,
    full_audio,
    mixed_rows,
    plain_rows,
    relative_error,
    single_process_lm,
    toy_config,
)

BOUNDS: dict[Any, float] = {"torch": 1e-5, "te": 1e-2}
"""Relative: Transformer Engine multiplies float32 in TF32, whose products have ten bits."""


@requires_gpu
@pytest.mark.parametrize("layers", BOUNDS)
def test_a_gpu_computes_what_transformers_computes(layers: Any, tmp_path, monkeypatch):
    if layers == "te" and (problem := transformer_engine_problem()):
        pytest.skip(f"Transformer Engine {problem}")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    folder = write_folder(tmp_path / "qwen2", tied=True)
    device = current_device()
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(device.backend, store=store, rank=0, world_size=1)
    config = replace(toy_config(), layers=layers)
    lm = single_process_lm(config, added=0).to(device.torch)
    load_language([lm], LanguageFolder(folder).source, config.model.lm)
    host = full_audio()
    audio = AudioKeys(tokens_LBD=host.tokens_LBD.to(device.torch), audio_of_BL=host.audio_of_BL)
    logits = lm.logits(plain_rows(), audio, torch.zeros(0, HIDDEN, device=device.torch))
    assert relative_error(logits.cpu(), torch.load(folder / "logits.pt")) < BOUNDS[layers]
    losses = lm(plain_rows(), audio, torch.zeros(0, HIDDEN, device=device.torch))
    losses.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@requires_gpu
@pytest.mark.parametrize("of", ["text", "audio"])
def test_one_kernel_attends_to_all_stretches(of: str):
    """Against float32 on the CPU, gradients as well: stretches of no keys and keys of no stretch included."""
    rows, audio = mixed_rows(1, length=48)
    sight = Sight.of(rows, audio.audio_of_BL)
    stretches = sight.text if of == "text" else sight.audio
    assert stretches is not None and 0 in stretches.keys
    keys = 48 if of == "text" else audio.audio_of_BL.shape[1]
    generator = torch.Generator().manual_seed(0)
    shapes = ((48, 4, 4, 64), (keys, 4, 2, 64), (keys, 4, 2, 64), (48, 4, 256))
    *inputs, up = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)

    def computed(device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
        attended = attention_by_stretch(*leaves, stretches, causal=of == "text")
        return [x.float().cpu() for x in (attended, *torch.autograd.grad(attended, leaves, up.to(device, dtype)))]

    found = computed(current_device().torch, torch.bfloat16)
    for mine, theirs in zip(found, computed(torch.device("cpu"), torch.float32), strict=True):
        assert relative_error(mine, theirs) < 2e-2
