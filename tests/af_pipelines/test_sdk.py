"""The folder ``kubeflow/`` hides no installed package of that name, however Python is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROBE = "import af_pipelines, kubeflow.trainer; print(kubeflow.trainer.WHOSE)"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Stands in for site-packages with the Kubeflow SDK: a regular package ``kubeflow``."""
    package = tmp_path / "site/kubeflow/trainer"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("WHOSE = 'the SDK'\n")
    (tmp_path / "site/probe.py").write_text(PROBE + "\n")
    (tmp_path / "test_probe.py").write_text(f"def test_probe():\n    {PROBE}\n")
    return tmp_path / "site"


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", PROBE),
        ("-m", "probe"),
        ("{site}/probe.py",),
        ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "{site}/../test_probe.py"),
    ],
    ids=["command", "module", "script", "pytest"],
)
def test_the_sdk_stays_importable_from_the_root(site: Path, arguments: tuple[str, ...]) -> None:
    # The root comes first, as it does for whoever works in it; the SDK comes last, as site-packages do.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kubeflow"), str(site)])
    done = subprocess.run(
        [sys.executable, *(argument.replace("{site}", str(site)) for argument in arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "the SDK" in done.stdout, done.stdout + done.stderr
