"""Where the project's own files lie: its modules by name, and what belongs to the repository."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"megatron_af": ROOT, "dali_pipes": ROOT, "af_pipelines": ROOT / "kubeflow", "tools": ROOT}
MODULES = {
    ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
    for package, base in PACKAGES.items()
    for path in sorted((base / package).rglob("*.py"))
}


def tracked() -> list[Path]:
    """Files of the repository: what git knows or would add; all files where there is no git."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
