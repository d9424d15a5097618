"""Every layout computes what one process computes: loss, every gradient, and the weights after several steps.

In float32; errors are relative to the largest value of each gradient.
"""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_af.config import LoRAConfig
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import compiler_problem, current_device
from megatron_af.parallel.global_state import gather_global
from megatron_af.prove.live_weights import live
from megatron_af.train.objectives import answer_learner
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.optimizer import build_schedule
from megatron_af.train.trainable import select
from tests import tiny
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow

STEPS, MEASURED = 4, (0, 2)

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"tensor": 2}),
    "TP2+SP": (2, {"tensor": 2, "sequence": True}),
    "PP2": (2, {"pipeline": 2}),
    "PP2xVPP2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "DP2": (2, {}),
    "DP2+ZeRO-1": (2, {"distributed_optimizer": True}),
    "DP2+ZeRO-1+overlap": (2, {"distributed_optimizer": True, "overlap": True}),
    "TP2xPP2+SP": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    "PP2xDP2+ZeRO-1": (4, {"pipeline": 2, "distributed_optimizer": True}),
    "TP2xPP2xVPP2+SP+full recompute": (
        4,
        {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "sequence": True, "recompute": "full"},
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "everything trains": {"trainable": tiny.ALL},
    "frozen LM": {"trainable": tiny.FROZEN_LM},
    # The one block stands before the last of the four layers: the first pipeline stage has nothing to train.
    "stage without trainables": {"trainable": ("lm.*.xattn.*",), "interval": 4},
    "untied": {"trainable": tiny.ALL, "tied": False},
    "adapters": {"trainable": tiny.ADAPTERS, "lora": tiny.LORA},
    "adapters alone": {
        "trainable": ("lm.*.lora.*",),
        "lora": LoRAConfig(targets=("linear_proj", "linear_fc1"), rank=3, alpha=1.5),
    },
    "bf16": {"trainable": tiny.ALL, "precision": "bf16"},
}


BUCKET = 3_000
"""Elements of a gradient bucket where many of them make one model: what reads a table reads it out of the last one."""


def train(
    rank: int, world_size: int, variant: dict[str, Any], layout: dict[str, Any], small_buckets: bool = False
) -> dict[str, Any]:
    variant = dict(variant)
    precision, compiled = variant.pop("precision", "fp32"), variant.pop("compiled", "")
    config = dataclasses.replace(tiny.config(**variant, **layout), precision=precision, compile=bool(compiled))
    if compiled:
        layer_compile = torch.nn.Module.compile
        torch.nn.Module.compile = lambda self, **k: layer_compile(self, backend=compiled, **k)
    if small_buckets:
        ddp_config = answer_learner._ddp_config
        answer_learner._ddp_config = lambda *a, **k: dataclasses.replace(ddp_config(*a, **k), bucket_size=BUCKET)
    stage = config.curriculum["stage"]
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    select(model.named_parameters(), stage)
    objective = AnswerLearner(config, stage, model, groups, torch.device("cpu"))
    schedule = build_schedule(stage.optimizer, stage.steps, objective.optimizer)
    result: dict[str, Any] = {"losses": [], "norms": [], "graphs": []}
    for step in range(STEPS):
        batch = tiny.step_batch(
            step,
            dp_rank=groups.data_rank,
            dp_size=groups.data_size,
            mp_rank=groups.model_rank,
            mp_size=groups.model_size,
        )
        seen = objective.measure(batch) if step in MEASURED else None
        record = objective.forward_backward(batch)
        if seen is not None:  # before anything is learnt from it
            rounding = 1e-6 if precision == "fp32" else 1e-2
            assert seen["loss"] == pytest.approx(record["loss"], rel=rounding) and 0 <= seen["sure"] <= 1
            result["sure"] = seen["sure"]
        if step == 0:
            result["first"] = record
            if layout.get("distributed_optimizer"):
                objective.optimizer.gather_gradients()
            result["gradients"] = gather_global(model.chunks, model.front, "main_grad")
        schedule.step(1)
        result["losses"].append(record["loss"])
        result["norms"].append(objective.optimizer.step_checked())
        result["graphs"].append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    objective.sync_parameters()
    result["weights"] = gather_global(model.chunks, model.front, "data")
    process_groups.destroy()
    return result


@pytest.fixture(scope="module")
def reference() -> Any:
    cache: dict[str, Any] = {}

    def of(variant: str) -> Any:
        if variant not in cache:
            cache[variant] = run_distributed(train, 1, VARIANTS[variant], {})[0]
        return cache[variant]

    return of


def relative_errors(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    assert set(got) == set(expected)
    return {
        name: float((got[name] - value).abs().max() / value.abs().max().clamp_min(1e-12))
        for name, value in expected.items()
        if value.abs().max() > 0
    }


CASES = [(layout, "everything trains") for layout in LAYOUTS] + [
    (layout, "frozen LM") for layout in ("TP2+SP", "DP2+ZeRO-1", "PP2xDP2+ZeRO-1", "TP2xPP2xVPP2+SP+full recompute")
]
CASES += [(layout, "adapters") for layout in LAYOUTS if layout not in ("PP2", "DP2")] + [("TP2", "adapters alone")]
CASES += [("PP2", "stage without trainables"), ("PP2xDP2+ZeRO-1", "stage without trainables"), ("TP2xPP2+SP", "untied")]


@pytest.mark.parametrize(("layout", "variant"), CASES, ids=[f"{a}, {b}" for a, b in CASES])
def test_layout_equals_one_process(layout: str, variant: str, reference: Any, record_property: Any) -> None:
    world_size, parallel = LAYOUTS[layout]
    got = run_distributed(train, world_size, VARIANTS[variant], parallel, timeout=180)[0]
    check_equal(layout, variant, got, reference(variant), record_property)


LAZY = {
    "DP2+ZeRO-1+overlap": LAYOUTS["DP2+ZeRO-1+overlap"],
    "PP2xDP2+ZeRO-1+overlap": (4, {"pipeline": 2, "distributed_optimizer": True, "overlap": True}),
    "PP2xVPP2xDP2+ZeRO-1+overlap": (
        4,
        {"pipeline": 2, "virtual_pipeline": 2, "distributed_optimizer": True, "overlap": True},
    ),
    "TP2xDP2+SP+ZeRO-1+overlap": (4, {"tensor": 2, "sequence": True, "distributed_optimizer": True, "overlap": True}),
}
"""Layouts that gather updated weights while the next step runs; the last one is that of the shipped 3B model."""


@pytest.mark.parametrize("variant", ["everything trains", "untied"])
@pytest.mark.parametrize("layout", LAZY)
def test_weights_are_whole_when_they_are_read(layout: str, variant: str, reference: Any, record_property: Any) -> None:
    world_size, parallel = LAZY[layout]
    got = run_distributed(train, world_size, VARIANTS[variant], parallel, small_buckets=True, timeout=180)[0]
    check_equal(layout, variant, got, reference(variant), record_property)


def test_the_layout_of_the_3b_model_in_bf16(reference: Any) -> None:
    """Sums are rounded otherwise: no closer than bf16's eight bits allow."""
    world_size, parallel = LAZY["TP2xDP2+SP+ZeRO-1+overlap"]
    got = run_distributed(train, world_size, VARIANTS["bf16"], parallel, small_buckets=True, timeout=180)[0]
    expected = reference("bf16")
    assert got["losses"] == pytest.approx(expected["losses"], rel=2e-2)
    assert got["norms"] == pytest.approx(expected["norms"], rel=2e-2)
    parts: dict[str, list[str]] = {}
    for name in expected["gradients"]:
        parts.setdefault("xattn" if ".xattn." in name else name.split(".")[0], []).append(name)
    assert parts.keys() == {"encoder", "transform", "added_rows", "lm", "xattn"}
    for part, names in parts.items():
        one, other = (torch.cat([run["gradients"][name].flatten() for name in names]) for run in (got, expected))
        assert F.cosine_similarity(one, other, dim=0) > 0.99, part


def test_layers_that_are_compiled_compute_the_same(reference: Any, record_property: Any) -> None:
    """Traced and differentiated as torch.compile does it, without its C++; that is the next test's."""
    variant = {**VARIANTS["everything trains"], "compiled": "aot_eager"}
    parallel = {"tensor": 2, "sequence": True, "recompute": "full"}
    got = run_distributed(train, 2, variant, parallel, timeout=300)[0]
    check_equal("TP2+SP+full recompute", "compiled", got, reference("everything trains"), record_property)
    assert 0 < got["graphs"][0] == got["graphs"][-1], "other lengths were compiled anew"


@pytest.mark.skipif(bool(compiler_problem()), reason="needs a C++ compiler")
def test_the_compilers_own_kernels_compute_the_same(reference: Any, record_property: Any) -> None:
    got = run_distributed(train, 1, {**VARIANTS["everything trains"], "compiled": "inductor"}, {}, timeout=600)[0]
    check_equal("one process", "compiled", got, reference("everything trains"), record_property)
    assert 0 < got["graphs"][0] == got["graphs"][-1], "other lengths were compiled anew"


def check_equal(layout: str, variant: str, got: dict[str, Any], expected: dict[str, Any], record_property: Any) -> None:
    gradient_errors = relative_errors(got["gradients"], expected["gradients"])
    worst = max(gradient_errors, key=gradient_errors.__getitem__)
    record_property("worst_gradient_error", gradient_errors[worst])
    print(f"{layout}, {variant}: worst relative gradient error {gradient_errors[worst]:.1e} ({worst})")
    assert gradient_errors[worst] <= 1e-5, worst
    assert got["first"] == pytest.approx(expected["first"], rel=1e-6)
    assert got["losses"] == pytest.approx(expected["losses"], rel=2e-6) and got["sure"] == expected["sure"]
    assert got["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    weight_errors = relative_errors(got["weights"], expected["weights"])
    assert max(weight_errors.values()) <= 2e-5, max(weight_errors, key=weight_errors.__getitem__)


def test_reference_trains_every_part(reference: Any) -> None:
    """Guards the comparison: no gradient of the reference is identically zero."""
    for variant in ("everything trains", "adapters"):
        gradients = reference(variant)["gradients"]
        silent = [name for name, gradient in gradients.items() if not gradient.abs().max() > 0]
        assert not silent
    assert sum(".lora." in name for name in gradients) == 4 * 4 * 2  # layers, linears, matrices
    first = reference("everything trains")["first"]
    assert (first["too_long/a"], first["too_long/b"]) == (1, 2)
    assert reference("everything trains")["losses"][0] > reference("everything trains")["losses"][-1]


@pytest.mark.parametrize("variant", ["frozen LM", "adapters"])
def test_frozen_parameters_have_no_gradient_and_do_not_move(variant: str, reference: Any) -> None:
    result = reference(variant)
    frozen = [n for n in result["weights"] if n.startswith("lm.") and ".xattn." not in n and ".lora." not in n]
    assert frozen and not set(frozen) & set(result["gradients"])
    for name in frozen:
        weight = result["weights"][name]
        start = live(name, weight.shape)
        assert torch.equal(weight, start), name
