"""The decoder in tensor-, sequence- and pipeline-parallel layouts against one process: every gradient.

That process attends under dense masks; the layouts attend by stretch.

Audio tokens and rows of added tokens are fixed leaves here; their gradients are summed over the ranks as
encode-ahead does. Data parallelism, the optimizer and the audio side are tested with the training loop.
"""

import dataclasses
import importlib

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_af.data.batch import IGNORED
from megatron_af.decoder import attention, cross_attention
from megatron_af.decoder.lm import AudioLM
from megatron_af.decoder.stretches import Sight
from megatron_af.parallel.global_state import gather_global, load_global
from tests.decoder.toy import (
    ADDED,
    HIDDEN,
    build_chunks,
    mixed_rows,
    open_gates,
    relative_error,
    run_schedule,
    start_layout,
    toy_config,
)
from tests.decoder.visible import audio_visible, text_visible
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
MICRO_BATCHES = 4
Result = dict[str, dict[str, Tensor]]

LAYOUTS = {
    "TP2": {"tensor": 2},
    "TP2+SP": {"tensor": 2, "sequence": True},
    "PP2": {"pipeline": 2},
    "PP4, two stages without a block": {"pipeline": 4},
    "PP2xVPP2": {"pipeline": 2, "virtual_pipeline": 2},
    "PP3, of two layers and twice one": {"pipeline": 3},
    "TP2xPP2": {"tensor": 2, "pipeline": 2},
    "TP2xPP2+SP": {"tensor": 2, "pipeline": 2, "sequence": True},
    "TP2+SP, selective recompute": {"tensor": 2, "sequence": True, "recompute": "selective"},
    "TP2xPP2xVPP2+SP, full recompute": {
        "tensor": 2,
        "pipeline": 2,
        "virtual_pipeline": 2,
        "sequence": True,
        "recompute": "full",
    },
}


def world_of(layout: dict[str, object]) -> int:
    return int(layout.get("tensor", 1)) * int(layout.get("pipeline", 1))


def reduce_gradients(chunks: list[AudioLM]) -> None:
    """What megatron-core's ``finalize_model_grads`` does besides data parallelism."""
    finalize = importlib.import_module("megatron.core.distributed.finalize_model_grads")
    for chunk in chunks:
        chunk.ddp_config = type("DDPConfig", (), {"use_megatron_fsdp": False})()
        for parameter in chunk.parameters():
            parameter.main_grad = parameter.grad
    finalize._allreduce_word_embedding_grads(chunks, chunks[0].config)
    finalize._allreduce_non_tensor_model_parallel_grads(chunks, chunks[0].config)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, visible_TK: Tensor, *, causal: bool) -> Tensor:
    """The reference: all rows are one, and a mask says what each of its positions sees, causality included."""
    length, batch = query.shape[:2]
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    one_row = [x.transpose(0, 1).flatten(0, 1).transpose(0, 1) for x in (query, key, value)]
    attended_NTD = F.scaled_dot_product_attention(*one_row, attn_mask=visible_TK)
    attended_NTD = attended_NTD.where(visible_TK.any(1)[:, None], 0.0)
    return attended_NTD.transpose(0, 1).reshape(batch, length, -1).transpose(0, 1).contiguous()


def attend_by_masks() -> None:
    """From here on this process looks at every pair of a position and a key."""
    Sight.of = classmethod(
        lambda cls, rows, audio_of_BL: cls(
            text_visible(rows.segment_BS), audio_visible(rows, audio_of_BL), rows.ids_BS.shape[1]
        )
    )
    attention.attention_by_stretch = cross_attention.attention_by_stretch = masked_attention


def one_step(
    rank: int, world_size: int, lm: dict[str, object], frozen: bool, layout: dict[str, object], masked: bool = False
) -> Result:
    """Losses, gradients of all weights, and of the audio tokens and rows summed over the ranks."""
    if masked:
        attend_by_masks()
    config = toy_config(lm=lm, **layout)
    start_layout(config.parallel)
    chunks = build_chunks(config)
    load_global(chunks, None, open_gates)
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.requires_grad = not frozen or ".xattn." in name
    batches = [mixed_rows(seed) for seed in range(MICRO_BATCHES)]
    masked = torch.full_like(batches[1][0].labels_BS, IGNORED)  # one micro-batch supervises nothing at all
    batches[1] = (dataclasses.replace(batches[1][0], labels_BS=masked), batches[1][1])
    for _, audio in batches:
        audio.tokens_LBD.requires_grad_()
    rows_NH = (torch.randn(ADDED, HIDDEN, generator=torch.Generator().manual_seed(3)) * 0.15).requires_grad_()
    losses = run_schedule(chunks, batches, rows_NH)
    reduce_gradients(chunks)
    leaves = {"rows": rows_NH} | {f"tokens.{i}": audio.tokens_LBD for i, (_, audio) in enumerate(batches)}
    inputs = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    for gradient in inputs.values():
        dist.all_reduce(gradient)
    logits = run_schedule(chunks, batches, rows_NH, forward_only=True, forward=AudioLM.logits)
    return {
        "losses": {str(i): loss for i, loss in enumerate(losses)},
        "logits": {str(i): logit for i, logit in enumerate(logits)},
        "weights": gather_global(chunks, None, "grad"),
        "inputs": inputs,
    }


TIED, UNTIED = {"tied": True}, {"tied": False, "ffn": 96}
OPT = {"family": "opt", "kv_heads": 4, "ffn": 224}
"""At these widths no gate's gradient, a sum of many terms, nearly cancels out."""
_references: dict[tuple[str, bool], Result] = {}


def reference(lm: dict[str, object], frozen: bool) -> Result:
    key = (repr(lm), frozen)
    if key not in _references:
        _references[key] = run_distributed(one_step, 1, lm, frozen, {}, True)[0]
    return _references[key]


def compare(results: list[Result], expected: Result) -> None:
    first, last = results[0], results[-1]
    assert last["losses"] and last["logits"], "the last rank is on the last stage"
    for kind, found in (
        ("losses", last["losses"]),
        ("logits", last["logits"]),
        ("weights", first["weights"]),
        ("inputs", first["inputs"]),
    ):
        assert found.keys() == expected[kind].keys(), kind
        errors = {name: relative_error(found[name], expected[kind][name]) for name in found}
        worst = max(errors, key=errors.__getitem__)
        print(f"{kind}: worst relative error {errors[worst]:.1e} ({worst})")
        assert errors[worst] <= TOLERANCE, (kind, worst, errors[worst])


@pytest.mark.parametrize("lm", [TIED, OPT], ids=["qwen2", "opt"])
def test_stretches_equal_masks(lm):
    compare(run_distributed(one_step, 1, lm, False, {}), reference(lm, False))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_equals_one_process(layout):
    compare(run_distributed(one_step, world_of(layout), TIED, False, layout), reference(TIED, False))


@pytest.mark.parametrize("name", ["TP2", "PP2", "TP2xPP2+SP", "TP2xPP2xVPP2+SP, full recompute"])
def test_layout_of_a_family_with_learnt_positions(name):
    compare(run_distributed(one_step, world_of(LAYOUTS[name]), OPT, False, LAYOUTS[name]), reference(OPT, False))


@pytest.mark.parametrize("name", ["TP2xPP2+SP", "PP2xVPP2"])
def test_layout_with_an_untied_table(name):
    results = run_distributed(one_step, world_of(LAYOUTS[name]), UNTIED, False, LAYOUTS[name])
    compare(results, reference(UNTIED, False))


@pytest.mark.parametrize("name", ["TP2xPP2+SP", "PP4, two stages without a block"])
def test_layout_with_a_frozen_language_model(name):
    results = run_distributed(one_step, world_of(LAYOUTS[name]), TIED, True, LAYOUTS[name])
    compare(results, reference(TIED, True))


@pytest.mark.parametrize("lm", [TIED, OPT], ids=["qwen2", "opt"])
def test_every_gradient_is_live(lm):
    """Otherwise agreement would say nothing."""
    for kind in ("weights", "inputs"):
        for name, gradient in reference(lm, False)[kind].items():
            assert gradient.abs().max() > 1e-4 or name == "tokens.1", (kind, name)


def fresh_weights(rank: int, world_size: int, layout: dict[str, object]) -> dict[str, Tensor]:
    config = toy_config(**layout)
    start_layout(config.parallel)
    return gather_global(build_chunks(config), None, "data")


def test_fresh_weights_do_not_depend_on_the_layout():
    expected = run_distributed(fresh_weights, 1, {})[0]
    for name in ("TP2xPP2+SP", "PP2xVPP2"):
        found = run_distributed(fresh_weights, world_of(LAYOUTS[name]), LAYOUTS[name])[0]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
