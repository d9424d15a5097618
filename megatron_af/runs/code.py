"""Which code made something: version, commit, and whether it was changed since."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMIT = "MEGATRON_AF_COMMIT"
"""In an image, which has no checkout: the commit that it was built of, as ``git describe --dirty`` says it."""


def code_version() -> str:
    """``0.1.0 (3e9cab5, changed)``; where no commit is known the installed version alone."""
    commit, changed = source_revision()
    where = f" ({commit[:7]}{', changed' if changed == 'yes' else ''})" if commit else ""
    return f"{installed('megatron-af') or 'not installed'}{where}"


def source_revision() -> tuple[str, str]:
    """The checkout's commit and whether it has changes (``yes`` or ``no``); the image's commit; or empty."""
    root = Path(__file__).resolve().parents[2]
    if not (commit := _git(root, "rev-parse", "HEAD")):
        commit, _, dirty = os.environ.get(COMMIT, "").partition("-")
        return commit, ("yes" if dirty else "no") if commit else ""
    return commit, "yes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "no"


def installed(package: str) -> str:
    """Version of an installed package; empty where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
