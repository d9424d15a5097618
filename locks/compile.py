"""Compile the lock files beside this one from pyproject.toml, with uv. What is locked stays as long as it fits.

pip install uv && python locks/compile.py

For a newer version of a package, delete its lines from the lock file first. Each file holds what the files below it do
not: a package's version and hashes stand once.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
UV = ["uv", "pip", "compile", "--python-version=3.12", "--universal", "--generate-hashes", "--quiet",
      "--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]  # fmt: skip
WITH_PYTHON = {"pip"}
"""What is there before anything is installed, so that no lock file can hold it."""
MACHINES = [
    {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux", "implementation_name": "cpython",
     "platform_python_implementation": "CPython", "platform_machine": machine, "python_version": version,
     "python_full_version": f"{version}.0"}
    for machine, version in product(("x86_64", "aarch64"), ("3.12", "3.13", "3.14"))
]  # fmt: skip
"""Where the lock files are installed; what none of these takes is left out."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    asks: tuple[str, ...]
    """What pyproject.toml has for it, as uv's arguments."""
    below: tuple[str, ...] = ()
    head: str


LAYERS = {
    "build": Layer(
        asks=("--group=build",),
        head="What builds the packages that come as source. Installed first: what pip would choose itself has no hash.",
    ),
    "run": Layer(
        asks=("pyproject.toml", "--extra=kubeflow", "--extra=tracking-server"),
        below=("build",),
        head="What runs: the default dependencies, Kubeflow's clients and MLflow's server. Every image has this.",
    ),
    "dev": Layer(
        asks=("--extra=docs", "--extra=dev"),
        below=("build", "run"),
        head="What `make` installs besides: tests, linters, the audit, and the documentation's site.",
    ),
    "gpu": Layer(
        asks=("--extra=gpu",),
        below=("build", "run"),
        head="What the GPU image has besides.",
    ),
}


def pins(text: str) -> dict[str, str]:
    """Name -> its lines."""
    blocks = re.findall(r"^[^#\s].*\n(?: .*\n)*", text, re.MULTILINE)
    return {re.split(r"==", block)[0]: block for block in blocks}


def is_installed(block: str) -> bool:
    marker = Requirement(block.partition("\\")[0]).marker
    return marker is None or any(marker.evaluate(machine) for machine in MACHINES)


def version(block: str) -> str:
    return re.split(r"[ ;\\]", block.partition("==")[2])[0]


def above(resolved: dict[str, str], below: dict[str, str]) -> dict[str, str]:
    """What a layer adds to those below it. One environment holds one version: another one is refused."""
    moved = [name for name in resolved.keys() & below.keys() if version(resolved[name]) != version(below[name])]
    if moved:
        sys.exit(f"another version than in the lock files below: {', '.join(sorted(moved))}")
    return {name: block for name, block in resolved.items() if name not in below and is_installed(block)}


def resolve(asks: tuple[str, ...], preferred: dict[str, str]) -> dict[str, str]:
    """All that these need; uv takes what its output file already names, where that fits."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        output.write_text("".join(preferred.values()))
        subprocess.run([*UV, *asks, f"--output-file={output}"], cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
        return {name: block for name, block in pins(output.read_text()).items() if name not in WITH_PYTHON}


def main() -> None:
    files = {name: HERE / f"{name}.lock" for name in LAYERS}
    locked = {name: block for path in files.values() if path.exists() for name, block in pins(path.read_text()).items()}
    # All in one first, so that no layer takes what another one cannot have.
    together = resolve(tuple(ask for layer in LAYERS.values() for ask in layer.asks), locked)
    compiled: dict[str, dict[str, str]] = {}
    for name, layer in LAYERS.items():
        asks = tuple(ask for part in (*layer.below, name) for ask in LAYERS[part].asks)
        below = {package: block for part in layer.below for package, block in compiled[part].items()}
        compiled[name] = above(resolve(asks, together), below)
    for name, path in files.items():
        head = f"# {LAYERS[name].head}\n# Made by locks/compile.py from pyproject.toml.\n"
        path.write_text(head + "".join(compiled[name].values()))
        print(f"{path.relative_to(HERE.parent)}: {len(compiled[name])} packages")


if __name__ == "__main__":
    main()
