"""What is installed beside this Python: as a bill of materials, or as the page of licences.

python inventory.py sbom > sbom.cdx.json          CycloneDX 1.6: Python's packages, and Debian's where dpkg keeps a list
python inventory.py licences > docs/licences.md
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

OWN = {"megatron-af"}
DPKG = Path("/var/lib/dpkg/status")
SILENT = {"cuda-toolkit": "LicenseRef-NVIDIA-Proprietary", "huey": "MIT", "pycocoevalcap": "BSD-2-Clause AND MIT",
          "skops": "MIT", "transformer-engine": "Apache-2.0", "transformer-engine-cu13": "Apache-2.0",
          "transformer-engine-torch": "Apache-2.0"}  # fmt: skip
"""What the packages' metadata does not say, from their repositories."""
GPU_IMAGE = {
    "apache-tvm-ffi": "Apache 2.0", "einops": "MIT", "faiss-gpu": "MIT", "ml-dtypes": "Apache-2.0",
    "nvdlfw-inspect": "Apache2", "nvidia-cublas-cu12": "LicenseRef-NVIDIA-Proprietary",
    "nvidia-cuda-nvrtc-cu12": "LicenseRef-NVIDIA-Proprietary",
    "nvidia-cuda-runtime-cu12": "LicenseRef-NVIDIA-Proprietary", "nvidia-cudnn-frontend": "Apache-2.0 AND MIT",
    "nvidia-curand-cu12": "NVIDIA Proprietary Software", "nvidia-cutlass-dsl": "Other/Proprietary License",
    "nvidia-cutlass-dsl-libs-base": "Other/Proprietary License",
    "nvidia-cutlass-dsl-libs-core": "Other/Proprietary License",
    "nvidia-cutlass-dsl-libs-cu12": "Other/Proprietary License",
    "nvidia-cutlass-dsl-libs-cu13": "Other/Proprietary License", "nvidia-ml-py": "BSD", "onnx": "Apache-2.0",
    "onnx-ir": "Apache-2.0", "onnxscript": "MIT License",
    **{name: said for name, said in SILENT.items() if name.startswith("transformer-engine")},
}  # fmt: skip
"""What the metadata of `locks/gpu.lock`'s files says: they are not installed where the page is written."""
HEAD = """# Licences of what is installed

What `make` installs, by `locks/build.lock`, `locks/run.lock` and `locks/dev.lock`; the images do without the last one.
Each line is what the package itself says. `kubeflow/images/inventory.py` writes this page, `make audit` compares it.

| package | licence |
|---|---|
"""
GPU_HEAD = """
What the GPU image has besides, by `locks/gpu.lock`:

| package | licence |
|---|---|
"""


def name_of(package: Distribution) -> str:
    """As indexes spell it."""
    return re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()


def licence(package: Distribution) -> str:
    """Its SPDX expression, or what it says instead; "unknown" where it says nothing."""
    said = package.metadata
    if expression := said.get("License-Expression"):
        return str(expression)
    if name_of(package) in SILENT:
        return SILENT[name_of(package)]
    lines = (said.get("License") or "").strip().splitlines()
    if len(lines) == 1 and lines[0] != "UNKNOWN" and len(lines[0]) < 60:
        return str(lines[0])
    classified = [kind.rpartition(":: ")[2] for kind in said.get_all("Classifier", []) if kind.startswith("License ::")]
    return ", ".join(kind for kind in classified if kind != "OSI Approved") or "unknown"


def table(licences: dict[str, str]) -> str:
    return "".join(f"| {name} | {said} |\n" for name, said in licences.items())


def installed() -> list[Distribution]:
    """Packages by name, without this project's own and pip, which came with Python."""
    found = {name_of(package): package for package in distributions()}
    return [found[name] for name in sorted(found) if name not in OWN | {"pip"}]


def debian() -> Iterator[tuple[str, str]]:
    """Name and version of Debian's packages."""
    for entry in DPKG.read_text(encoding="utf-8").split("\n\n") if DPKG.exists() else []:
        lines = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0] != " ")
        if "installed" in lines.get("Status", ""):
            yield lines["Package"], lines["Version"]


def sbom() -> dict[str, Any]:
    """CycloneDX's object of all of them."""
    parts: list[dict[str, Any]] = [
        {
            "type": "library",
            "name": name_of(package),
            "version": package.version,
            "purl": f"pkg:pypi/{name_of(package)}@{package.version}",
            "licenses": [{"license": {"name": licence(package)}}],
        }
        for package in installed()
    ]
    for name, version in debian():
        purl = f"pkg:deb/{name}@{version}"
        parts.append({"type": "library", "name": name, "version": version, "purl": purl})
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": parts}


if __name__ == "__main__":
    if sys.argv[1:] == ["sbom"]:
        print(json.dumps(sbom(), indent=1))
    elif sys.argv[1:] == ["licences"]:
        found = {name_of(package): licence(package) for package in installed()}
        print(HEAD + table(found) + GPU_HEAD + table(GPU_IMAGE), end="")
    else:
        sys.exit(__doc__)
