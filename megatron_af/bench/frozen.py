"""What a frozen language model spares on the way back: its weights have no gradients.

    result = measure(Path(folder), progress)        # tools/bench.py frozen

One model learns whole, one freezes its language model under rows of added tokens that learn, so that gradients go
through all of it. A forward pass is timed alone, and taken from one with its way back; the models in turn, in processor
seconds of one thread, float32. Both have texts of short questions and hear one window each.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from megatron_af.bench.learning import Learning, Mixed, configuration
from megatron_af.bench.machine import world
from megatron_af.config import Config
from megatron_af.progress import Progress

ROUNDS = 5
BATCH = Mixed((1,) * 8, (120,) * 8)
LEARNS = {"trained": ("added_rows", "lm.*"), "frozen": ("added_rows",)}


def settings(hidden: int = 1024, layers: int = 6) -> dict[str, Config]:
    """A language model that is much larger than its audio side, with a gated block before every third layer."""
    base = configuration(512)
    lm = replace(base.model.lm, hidden=hidden, layers=layers, heads=hidden // 64, kv_heads=2, ffn=4 * hidden)
    cross = replace(base.model.cross_attention, interval=3)
    model = replace(base.model, lm=lm, cross_attention=cross)
    return {
        name: replace(base, model=model, curriculum={"step": replace(base.curriculum["step"], trainable=learns)})
        for name, learns in LEARNS.items()
    }


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        as :func:`compare`.
    """
    torch.set_num_threads(1)
    with world() as groups:
        return compare(settings(), groups, progress)


def compare(models: Mapping[str, Config], groups: Any, progress: Progress) -> dict[str, Any]:
    """
    Args:
        models: of `LEARNS`, each.

    Returns:
        ``seconds``: by model the forward pass and the way back (medians); ``ratio``: of the ways back, the frozen
        model's by the trained one's.
    """
    learning = {name: Learning(config, groups) for name, config in models.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in learning}
    for number in range(ROUNDS):
        for name, one in learning.items():
            taken[name].append(one.passes(BATCH))
        progress.update("frozen", number + 1, ROUNDS)
    seconds: dict[str, dict[str, float]] = {}
    for name, found in taken.items():
        forward, both = (median(each) for each in zip(*found, strict=True))
        seconds[name] = {"forward": forward, "backward": both - forward}
    return {"seconds": seconds, "ratio": seconds["frozen"]["backward"] / seconds["trained"]["backward"]}


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    table = Table("language model", "forward, s", "way back, s", title="without the update", title_justify="left")
    for name, each in result["seconds"].items():
        table.add_row(name, f"{each['forward']:.2f}", f"{each['backward']:.2f}")
    table.caption = f"the frozen one's way back takes {result['ratio']:.0%} of the trained one's"
    return [table]
