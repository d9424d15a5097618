"""The images: linted, by digest, not run as root, with code in the last layers, which rebuild in seconds.

What they install: tests/test_locks.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from locks.compile import LAYERS, pins
from megatron_af.runs.code import COMMIT

ROOT = Path(__file__).parents[2]
IMAGES = sorted((ROOT / "kubeflow/images").glob("*.Dockerfile"))
BY_TAG = {"nvcr.io/nvidia/cuda-dl-base:25.10-cuda13.0-devel-ubuntu24.04"}
"""Bases whose digest nobody publishes where we could have compared it."""


@pytest.mark.slow
@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_linted(image: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([str(hadolint), str(image)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_layers_user_and_entry_point(image: Path) -> None:
    lines = image.read_text().splitlines()
    (base,) = (line.split()[1] for line in lines if line.startswith("FROM "))
    assert base in BY_TAG or re.fullmatch(r"[a-z]+:\d[\w.-]+@sha256:[0-9a-f]{64}", base)
    last_install = max(index for index, line in enumerate(lines) if "--require-hashes" in line)
    packages = ("COPY megatron_af", "COPY tools", "COPY kubeflow/af_pipelines")
    code = [index for index, line in enumerate(lines) if line.startswith(packages)]
    assert len(code) == 3 and min(code) > last_install, "code comes after everything that takes minutes"
    own = lines.index("RUN pip install --no-deps --no-build-isolation -e .")
    copied = [index for index, line in enumerate(lines) if line.startswith("COPY ")]
    assert own > max(copied), "a model is registered with the version of what is installed"
    assert own < lines.index("ARG COMMIT=") < lines.index(f"ENV {COMMIT}=$COMMIT")
    user = next(index for index, line in enumerate(lines) if line.startswith("USER "))
    assert lines[user] == "USER 10001:10001", "as in the manifests"
    assert user < lines.index('ENTRYPOINT ["python"]')


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_everything_copied_exists_and_is_sent_to_the_builder(image: Path) -> None:
    ignore = image.with_name(f"{image.name}.dockerignore").read_text().splitlines()
    for line in image.read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignore, source


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_the_bill_of_materials_follows_the_last_install(image: Path) -> None:
    lines = image.read_text().splitlines()
    (bill,) = (index for index, line in enumerate(lines) if "inventory.py sbom" in line)
    assert bill > max(i for i, line in enumerate(lines) if "--require-hashes" in line or "apt-get install" in line)


@pytest.mark.slow
def test_the_bill_names_every_package_and_every_licence() -> None:
    bill = json.loads(run_inventory("sbom"))
    named = {part["name"]: part for part in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX" and named["torch"]["purl"].startswith("pkg:pypi/torch@2.")
    assert named["soxr"]["licenses"] == [{"license": {"name": "LGPL-2.1-or-later"}}]
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", (ROOT / "docs/licences.md").read_text(), re.MULTILINE))
    assert listed.pop("package") == "licence" and "unknown" not in listed.values()
    pinned = [name for layer in LAYERS for name in pins((ROOT / f"locks/{layer}.lock").read_text())]
    # What Python 3.13 alone wants is not installed where the page is written.
    assert {*pinned} - {"pyyaml-ft"} == listed.keys()
    assert run_inventory("licences").count("| unknown |") == 0


def run_inventory(what: str) -> str:
    command = [sys.executable, str(ROOT / "kubeflow/images/inventory.py"), what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
