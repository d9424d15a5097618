"""The lock files: all that is asked for and what this needs, once, by hashes; and nothing is installed past them."""

import importlib.metadata
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.compile import LAYERS, WITH_PYTHON, above, is_installed, pins, version
from tests.house import ROOT

LOCKS = {path.stem: pins(path.read_text()) for path in sorted((ROOT / "locks").glob("*.lock"))}
TOGETHER = [("build", "run", "dev"), ("build", "run", "gpu")]
"""What is installed into one environment."""
IMAGES = sorted((ROOT / "kubeflow/images").glob("*.Dockerfile"))


def asked(layer: str) -> list[Requirement]:
    """What pyproject.toml has for it."""
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = {"pyproject.toml": text["project"]["dependencies"]}
    parts |= {f"--extra={name}": items for name, items in text["project"]["optional-dependencies"].items()}
    parts |= {f"--group={name}": items for name, items in text["dependency-groups"].items()}
    return [Requirement(item) for ask in LAYERS[layer].asks for item in parts[ask]]


def held(*layers: str) -> dict[str, str]:
    return {name: block for layer in layers for name, block in LOCKS[layer].items()}


@cache
def requires(name: str) -> list[Requirement]:
    return [Requirement(item) for item in importlib.metadata.requires(name) or []]


def needed(requirements: list[Requirement]) -> set[str]:
    """Names of these and of all that they need on this machine, as the installed packages say it."""
    seen: set[tuple[str, str]] = set()
    wanted = [(requirement, {""}) for requirement in requirements]
    while wanted:
        requirement, extras = wanted.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) not in seen:
                seen.add(key)
                wanted += [(needs, {"", *requirement.extras}) for needs in requires(key[0])]
    return {name for name, _ in seen} - WITH_PYTHON


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_a_version_and_the_hashes_of_its_files(lock: str) -> None:
    text = (ROOT / f"locks/{lock}.lock").read_text()
    assert "".join(LOCKS[lock].values()) == re.sub(r"^#.*\n", "", text, flags=re.MULTILINE) != ""
    assert "://" not in text
    pin = re.compile(r"[a-z0-9.-]+==[\w.+!-]+( ; [^\\\n]+?)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n")
    assert [block for block in LOCKS[lock].values() if not pin.fullmatch(block)] == []


def test_lock_files_are_layers() -> None:
    assert set(LOCKS) == {*LAYERS, "harnesses"}
    for together in TOGETHER:
        assert sum(len(LOCKS[layer]) for layer in together) == len(held(*together)), "a package stands once"


@pytest.mark.parametrize("layer", LAYERS)
def test_all_that_the_project_asks_for_is_locked_in_a_version_that_fits(layer: str) -> None:
    here = held(*LAYERS[layer].below, layer)
    for requirement in asked(layer):
        assert requirement.specifier.contains(version(here[canonicalize_name(requirement.name)])), str(requirement)


def test_what_is_installed_is_what_is_needed() -> None:
    """Nobody resolves while installing: a package that the lock files lack would be missing, and break at an import."""
    for layers in (("run",), ("run", "dev")):
        locked = {name for name, block in held("build", *layers).items() if applies(block)}
        asks = [item for layer in ("build", *layers) for item in asked(layer)]
        assert needed(asks) == locked


def applies(block: str) -> bool:
    marker = Requirement(block.partition("\\")[0]).marker
    return marker is None or marker.evaluate()


def installs(path: Path) -> Iterator[list[str]]:
    """The words of each command that installs Python packages, make's variables in their places."""
    text = re.sub(r"^\s*#.*$", "", path.read_text().replace("\\\n", " "), flags=re.MULTILINE)
    variable = re.compile(r"^([A-Z]+) = (.*)\n", re.MULTILINE)
    variables, text = variable.findall(text), variable.sub("", text)
    for name, value in variables:
        text = text.replace(f"$({name})", value)
    for line in re.split(r"\n|&&|;", text.replace("$(if $(CI),--quiet)", "")):
        if re.search(r"\b(pip3?|uv|pipx|easy_install|conda)\b.* (install|sync|download|wheel|run|tool)\b", line):
            yield shlex.split(line)


def files(words: list[str]) -> list[str]:
    return [after for word, after in itertools.pairwise(words) if word in {"-r", "--requirement"}]


@pytest.mark.parametrize("path", [ROOT / "Makefile", ROOT / ".ci/run", *IMAGES], ids=lambda path: path.name)
def test_every_install_compares_hashes_and_asks_no_index_what_to_install(path: Path) -> None:
    for words in installs(path):
        rest = words[words.index("install") + 1 :]
        named = [word for word in rest if not word.startswith("-") and word not in files(rest)]
        if rest[-2:] == ["-e", "."]:  # the project itself: nothing of it comes from elsewhere
            assert {"--no-deps", "--no-build-isolation"} <= set(rest) and named == ["."], words
            continue
        assert {"--no-deps", "--require-hashes"} <= set(rest), words
        assert named == [], "what is installed stands in a lock file"
        assert files(rest) and {*files(rest)} <= {f"locks/{lock}.lock" for lock in LOCKS}, words
        assert "--no-build-isolation" in rest or files(rest) == ["locks/build.lock"], "builds would take what they like"


def test_makefile_and_images_install_their_layers() -> None:
    def layers(path: Path) -> list[str]:
        return [Path(name).stem for words in installs(path) for name in files(words)]

    assert layers(ROOT / "Makefile") == ["build", "run", "dev", "harnesses"]
    assert {path.stem: layers(path) for path in IMAGES} == {"cpu": ["build", "run"], "gpu": ["build", "run", "gpu"]}


def test_transformer_engine_is_compiled_from_the_source_that_has_a_hash() -> None:
    (words,) = (words for words in installs(ROOT / "kubeflow/images/gpu.Dockerfile") if "locks/gpu.lock" in words)
    assert words[0] == "NVTE_PYTORCH_FORCE_BUILD=TRUE", "its set-up would download a wheel past pip"


def test_a_layer_holds_what_those_below_do_not() -> None:
    one, windows = "one==1 \\\n    --hash=sha256:1\n", "windows==2 ; sys_platform == 'win32' \\\n    --hash=sha256:2\n"
    some = "some==3 ; python_full_version == '3.13.*' \\\n    --hash=sha256:3 \\\n    --hash=sha256:4\n"
    below, resolved = pins(f"# a note\n{one}"), pins(one + windows + some)
    assert (below, [*resolved.values()]) == ({"one": one}, [one, windows, some])
    assert [is_installed(block) for block in resolved.values()] == [True, False, True]
    assert above(resolved, below) == {"some": some}
    with pytest.raises(SystemExit, match="another version than in the lock files below: one"):
        above(pins(one.replace("==1", "==2")), below)
