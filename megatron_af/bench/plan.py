"""Rates of this machine for ``configs/gpus/``, and the planned time of a step beside the measured one.

    result = measure(Path(folder), progress)

Times are processor seconds of one thread, so that other programs of the machine do not count.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table

from megatron_af.bench.learning import BATCH, VOCABULARY, Learning, Mixed, configuration
from megatron_af.bench.machine import world
from megatron_af.config import Config
from megatron_af.progress import Progress

ROWS, SIZE, OPERANDS = 2048, 512, 8
"""Of matrix products, about as large as those of the models that are timed: as many rows by a square weight. A model
multiplies other tensors each time, which no cache of the processor holds; so do `OPERANDS` of them in turn."""
SHORT, LONG = 64, 1024
"""Keys of a short question, and of a clip of a few minutes."""
HEADS, HEAD_DIM = 4, 64
ATTENTION_OPERATIONS = 2 * HEADS * HEAD_DIM * 6
"""Of a pair of a position and a key: two products forward, four on the way back."""
ROUNDS, STEPS = 12, 3
WAY = "packed"


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        ``rates``: of this machine, as in ``configs/gpus``; ``steps``: planned and measured seconds by setting.
    """
    torch.set_num_threads(1)
    found = rates()
    steps = {}
    with world() as groups:
        for number, (name, config) in enumerate(settings().items(), 1):
            steps[name] = compare(config, found, groups)
            progress.update("plan", number, len(settings()), name)
    return {"rates": found, "steps": steps}


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    told = Table("rate", "measured", title="this machine, one thread", title_justify="left")
    for name, value in result["rates"].items():
        told.add_row(name, f"{value:.3g}")
    steps = Table("setting", "planned s", "measured s", "planned / measured", title="a step", title_justify="left")
    for name, one in result["steps"].items():
        ratio = one["planned"] / one["measured"]
        steps.add_row(name, f"{one['planned']:.3f}", f"{one['measured']:.3f}", f"{ratio:.2f}")
    return [told, steps]


def settings() -> dict[str, Config]:
    """What is timed: everything learns, the language model is frozen, a larger one."""
    whole = configuration(512)
    stage = whole.curriculum["step"]
    frozen = replace(stage, trainable=("transform.*", "added_rows", "lm.*.xattn.*"))
    lm = replace(whole.model.lm, hidden=512, heads=8, kv_heads=2, ffn=2048)
    return {
        "all learns": whole,
        "frozen language model": replace(whole, curriculum={"step": frozen}),
        "twice as wide": replace(whole, model=replace(whole.model, lm=lm)),
    }


def rates() -> dict[str, float]:
    """Operations, bytes and kernels a second, and the keys at which attention reaches half its rate."""
    products = [(torch.randn(ROWS, SIZE), torch.randn(SIZE, SIZE)) for _ in range(OPERANDS)]
    long, small = torch.randn(4 * 2**20), torch.randn(8)
    # Seconds of a score at both lengths; between them it falls as (1 + half / keys) / rate.
    at_short, at_long = (attention_seconds(keys) / keys**2 for keys in (SHORT, LONG))
    half = max(0.0, (at_short - at_long) / (at_long / SHORT - at_short / LONG))
    return {
        "matmul": 2 * ROWS * SIZE**2 * OPERANDS / _seconds(lambda: [rows @ weight for rows, weight in products]),
        "attention": (1 + half / LONG) * ATTENTION_OPERATIONS / at_long,
        "half rate keys": half,
        "copy": 2 * long.nbytes / _seconds(lambda: long * 2.0),
        "launches": 1 / _seconds(lambda: [small * 2.0 for _ in range(1000)]) * 1000,
    }


def attention_seconds(keys: int) -> float:
    """Of as many positions and as many keys, forward and backward."""
    query, key, value = torch.randn(3, 1, HEADS, keys, HEAD_DIM).unbind()
    for each in (query, key, value):
        each.requires_grad_()
    calls = max(1, LONG**2 // keys**2 // 4)

    def attend() -> None:
        for _ in range(calls):
            F.scaled_dot_product_attention(query, key, value).sum().backward()  # type: ignore[no-untyped-call]

    return _seconds(attend) / calls


def _seconds(work: Callable[[], object]) -> float:
    """The middle of some, as a step is made of quick and slow moments."""
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return max(statistics.median(taken), 1e-9)


def compare(config: Config, found: dict[str, float], groups: Any) -> dict[str, float]:
    """Planned and measured seconds of the same batches, encoder aside, in these process groups."""
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.plan.case import Case
    from megatron_af.plan.gpu import Rates, read_gpu
    from megatron_af.plan.load import load_of
    from megatron_af.plan.step_time import step_time

    card = replace(
        read_gpu("cpu"),
        rates={
            "fp32": Rates(
                matmul=found["matmul"], attention=found["attention"], half_rate_keys=found["half rate keys"]
            )
        },
        copy=found["copy"],
        launch_seconds=1 / found["launches"],
    )
    config = replace(config, model=replace(config.model, lm=replace(config.model.lm, vocab=VOCABULARY)))
    case = Case(config=config, gpu=card, world=1)
    planned = measured = 0.0
    learning = Learning(config, groups)
    for seed in range(STEPS):
        batch = Mixed.draw(seed, BATCH)
        made = learning.batch(batch, WAY)
        load = replace(load_of(made.audio, made.text, config.model.encoder.tokens_per_window), encoded=0.0)
        planned += step_time(case, load).total
        measured += statistics.median(learning.seconds(batch, WAY) for _ in range(3))
    return {"planned": planned / STEPS, "measured": measured / STEPS}
