"""Where a run comes from: source revision, package versions, hardware, and its configuration, flat.

    tags = provenance_tags()
    params = flatten(config)           # {"model.lm.hidden": "2048", …}
"""

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

from megatron_af.foreign import read_text
from megatron_af.runs.code import installed, source_revision

PACKAGES = (
    "megatron-af", "megatron-core", "torch", "transformer-engine", "nvidia-dali-cuda130", "nvidia-dali-cuda120",
    "transformers", "mlflow", "numpy",
)  # fmt: skip


def provenance_tags(gpus: str = "") -> dict[str, str]:
    """Tags of the source, the packages and the machine; ``gpus`` as torch names them, where there are any."""
    commit, changed = source_revision()
    return {
        "mlflow.source.git.commit": commit,
        "source.uncommitted_changes": changed,
        "mlflow.source.type": "LOCAL",
        "packages": ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed(name))),
        "python": platform.python_version(),
        "hardware.cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "hardware.gpu": gpus,
        "hardware.host": platform.node(),
    }


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """``a.b.c`` -> text for every leaf of a dataclass or mapping; a sequence is one leaf."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, dict):
        return {prefix: ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)}
    leaves: dict[str, str] = {}
    for key, inner in value.items():
        leaves |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in read_text(info).splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
