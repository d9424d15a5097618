"""The house keeps its order: imports point one way, every shipped YAML runs, nothing of one machine is tracked."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_af.config.loading import load_config
from megatron_af.runs.check import check
from tests.house import MODULES, PACKAGES, ROOT, tracked

# From the ground floor up: a package may import what stands before it, and nothing else.
ORDER = (
    "megatron_af.files",
    "megatron_af.progress",
    "megatron_af.foreign",
    "megatron_af.cores",
    "megatron_af.web_page",
    "megatron_af.config",
    "megatron_af.entry",
    "megatron_af.processes",
    "megatron_af.completion",
    "megatron_af.retry_after",
    "megatron_af.flops",
    "megatron_af.text",
    "megatron_af.parallel",
    "dali_pipes",
    "megatron_af.data",
    "megatron_af.audio",
    "megatron_af.decoder",
    "megatron_af.model",
    "megatron_af.convert",
    "megatron_af.runs",
    "megatron_af.prepare",
    "megatron_af.train",
    "megatron_af.plan",
    "megatron_af.tracking",
    "megatron_af.inference",
    "megatron_af.retrieval",
    "megatron_af.evaluate",
    "megatron_af.pipeline",
    "megatron_af.serve",
    "megatron_af.release",
    "megatron_af.report",
    "megatron_af.start",
    "megatron_af.demo",
    "megatron_af.bench",
    "megatron_af.prove",
    "megatron_af.doctor",
    "af_pipelines",
    "tools",
)
EXPORTED = ROOT / "megatron_af/convert/huggingface"
"""Code of an exported model, which stands on its own."""
TRACKING = (
    "megatron_af.tracking",
    "megatron_af.release",
    "megatron_af.serve.mlflow_model",
    "af_pipelines",
    "tools",
)


def package_of(module: str) -> str:
    places = [package for package in ORDER if module == package or module.startswith(package + ".")]
    assert places, f"{module} has no place in ORDER; give it one"
    return max(places, key=len)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level and path.parent == EXPORTED:
                continue  # these files travel together, into a folder that is no package
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [node.module or "", *(name for name in names if name in MODULES)]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "megatron_af"])
def test_imports_point_one_way(module: str) -> None:
    own = package_of(module)
    for imported in imports(MODULES[module]):
        if imported in MODULES and imported not in PACKAGES and (package := package_of(imported)) != own:
            assert ORDER.index(package) < ORDER.index(own), f"{module} must not import {imported}: {package} is above"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("mlflow", TRACKING),
        ("kfp", ("af_pipelines",)),
        ("kubernetes", ("af_pipelines",)),
        ("nvidia.dali", ("dali_pipes",)),
        ("faiss", ("megatron_af.retrieval",)),
    ],
)
def test_each_library_is_known_in_its_place_only(library: str, allowed: tuple[str, ...]) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name == library or name.startswith(library + ".") for name in imports(path))
    }
    assert {user for user in users if not user.startswith(allowed)} == set()


WRITES = re.compile(r"\.write_(text|bytes)\(|open\([^()]*[\"']w|np\.savez?\(|json\.dump\(")
WRITERS = {
    "megatron_af.inference.requests": "in a temporary folder of its own",
    "megatron_af.parallel.ranks": "in a temporary folder of its own",
    "megatron_af.train.checkpoint_files": "in a partial folder that appears whole",
    "megatron_af.files": "the one writer",
    "megatron_af.data.storage": "fills the draft it was given",
    "megatron_af.prepare.mining": "fills the draft it was given",
    "megatron_af.retrieval.index": "in a partial folder that appears whole",
    "megatron_af.retrieval.vector_index": "fills the draft it was given",
    "megatron_af.audio.feature_cache": "many small files with a checksum each: without a sync, which would cost a step",
}


def test_files_appear_whole() -> None:
    """Whatever others read is written by ``megatron_af.files``; appending (logs, spools) is not meant."""
    writing = {
        module
        for module, path in MODULES.items()
        for line in path.read_text().splitlines()
        if WRITES.search(line) and not line.strip().startswith(("#", '"', "Path("))
    }
    assert writing - WRITERS.keys() == set(), "use megatron_af.files.write, appearing or put_in_place"


def test_only_the_device_module_asks_for_cuda() -> None:
    asking = {
        module
        for module, path in MODULES.items()
        if "cuda.is_available" in path.read_text() and module != "megatron_af.parallel.device"
    }
    assert asking == set()


def test_every_package_folder_is_a_package_and_kubeflow_is_none() -> None:
    folders = {path.parent for module, path in MODULES.items() if not module.startswith("tools")}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()
    # With an __init__.py here, the Kubeflow SDK could not be imported from the repository's root.
    assert not list((ROOT / "kubeflow").glob("*.py"))


def test_every_module_says_what_it_is() -> None:
    silent = {name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))}
    assert {name for name in silent if MODULES[name].name != "__init__.py"} == set()


TESTS = {"megatron_af": ROOT / "tests"} | {
    package: ROOT / "tests" / package for package in ("dali_pipes", "af_pipelines")
}
NO_MIRROR = {
    "dali_pipes.sound": "fields and constants alone",
    "megatron_af.config.data": "fields alone: tests/config/test_effects.py and test_ranges.py walk them",
    "megatron_af.config.model": "fields alone",
    "megatron_af.config.run": "fields alone",
    "megatron_af.config.stage": "fields alone",
    "megatron_af.train.callbacks.base": "hooks that do nothing",
}
def mirror_of(module: str) -> Path:
    package, *inner = module.split(".")
    return TESTS[package].joinpath(*inner[:-1], f"test_{inner[-1]}.py")


def test_every_module_has_its_mirror() -> None:
    modules = {
        name
        for name, path in MODULES.items()
        if name.split(".")[0] in TESTS and path.name not in ("__init__.py", "__main__.py")
    }
    without = {name for name in modules if not mirror_of(name).is_file()}
    assert without - NO_MIRROR.keys() == set(), "write these modules' tests, where mirror_of says"
    assert NO_MIRROR.keys() - without == set(), "these have a mirror, or are gone: drop them from the list"


def test_names_of_a_package_are_told_apart() -> None:
    """No two modules that differ by one letter, and none named like a test."""

    def differ_by_one(a: str, b: str) -> bool:
        short, long = sorted((a, b), key=len)
        if len(short) == len(long):
            return sum(x != y for x, y in zip(a, b, strict=True)) == 1
        return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))

    assert differ_by_one("release", "releases") and differ_by_one("data", "date")
    assert not differ_by_one("release", "released_") and not differ_by_one("clap", "clap")
    packages: dict[str, list[str]] = {}
    for name in MODULES:
        package, _, last = name.rpartition(".")
        packages.setdefault(package, []).append(last)
    alike = {
        f"{package}.{a} and {b}" for package, names in packages.items() for a in names for b in names
        if a < b and differ_by_one(a, b)
    }  # fmt: skip
    assert alike == set()
    assert {name for name in MODULES if re.search(r"(^|[._])tests?($|[._])", name)} == set()


READS = re.compile(
    r'\.read_(?:text|bytes)\(|\.open\((?:"rb?"|encoding=|\))|\b(?:np|torch|OmegaConf)\.load\((?!file)'
    r"|\b(?:safe_open|from_file|memmap|read_table|OSFile|read_index)\("
)
READS_WELL = re.compile(r'file_at\(|"/proc/|"wb"|\*both')
OWN_FILES = (
    "megatron_af.foreign", "megatron_af.files",  # the owners of reading and of writing
    "megatron_af.bench.", "megatron_af.parallel.ranks", "megatron_af.release.export", "megatron_af.doctor.examine",
    "megatron_af.completion",  # what they wrote a moment ago, and what lies in this repository
    "megatron_af.serve.terminal",  # listens to a pipe on purpose
    "dali_pipes.corrected",  # behind a correction, which has read the file
)  # fmt: skip


def test_nobody_opens_what_may_be_a_pipe_by_himself() -> None:
    """``foreign.file_at`` and those around it refuse what a reader would wait for."""
    found = [
        f"{name}: {line.strip()}"
        for name, path in MODULES.items() if not name.startswith(OWN_FILES)
        for line in re.sub(r'"""(?s:.*?)"""', "", path.read_text()).splitlines()
        if READS.search(line) and not READS_WELL.search(line)
    ]  # fmt: skip
    assert found == [], "open it by foreign.opened, read_bytes or read_text, or hand a library foreign.file_at(path)"


STARTS_PROCESSES = re.compile(
    r"\brun_distributed\((?!function)|subprocess\.(run|Popen|check_\w+)\((?!\s*\[?\s*\"git\")|os\.fork\("
)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_what_starts_processes_is_in_the_slow_tier(path: Path) -> None:
    text = path.read_text()
    if path != Path(__file__) and STARTS_PROCESSES.search(text):
        assert "pytest.mark.slow" in text, "mark these tests, or their module (pytestmark), with pytest.mark.slow"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_what_tests_share_is_no_test(path: Path) -> None:
    """It stands in a module beside them, named by what it is."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    assert [name for name in found if re.match(r"tests\.(\w+\.)*test_\w+$", name)] == []


def test_a_module_is_read_in_one_sitting() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}, "split it by what it answers for"


def test_tools_stay_thin() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items() if name.startswith("tools.")}
    assert {name: length for name, length in lengths.items() if length >= 100} == {}


def test_every_command_ends_by_the_one_handler() -> None:
    commands = {name: path.read_text() for name, path in MODULES.items() if name.startswith("tools.")}
    commands["af_pipelines.__main__"] = MODULES["af_pipelines.__main__"].read_text()
    without = {name for name, text in commands.items() if "@command\ndef main(" not in text}
    assert without == {"tools.pretrain_clap"}, "that one calls tools.pretrain_af"


SLOW_TO_IMPORT = re.compile(r"torch\b|megatron_af\.(parallel|plan|serve\.loaded_model)\b")


def test_tools_import_what_takes_seconds_without_searching_it() -> None:
    outside = []
    for name, path in MODULES.items():
        if not name.startswith("tools."):
            continue
        tree = ast.parse(path.read_text())
        blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
        unsearched = [block for block in blocks if ast.unparse(block.items[0]) == "importing()"]
        fine = {*map(id, tree.body), *(id(node) for block in unsearched for node in ast.walk(block))}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in fine:
                modules = [getattr(node, "module", ""), *(each.name for each in node.names)]
                outside += [f"{name}: {module}" for module in filter(SLOW_TO_IMPORT.match, modules)]
    assert outside == [], "put the import into `with importing():`"


TOP_FILES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", TOP_FILES, ids=lambda path: path.stem)
def test_every_shipped_run_loads_and_fits_its_launch(path: Path) -> None:
    config = load_config(path)
    processes = config.launch.nodes * config.launch.processes_per_node
    assert check(config, processes) == []
    assert config.curriculum


SECTIONS = [path for folder in ("model", "data", "curriculum") for path in (ROOT / "configs" / folder).glob("*.yaml")]


@pytest.mark.parametrize("path", sorted(SECTIONS), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_section_loads_by_itself(path: Path) -> None:
    load_config(path, ["name=section"])


def test_nothing_of_one_machine_is_tracked() -> None:
    machine_path = re.compile(r"/(work|root|home)/[a-z.]+/|/tmp/[a-z.]+/")
    registry = re.compile(r"index-url\b(?!.*no-emit)|https?://[^ ]*/simple([/ \"]|$)|\"resolved\": *\"http")
    secret = re.compile(r"AKIA[0-9A-Z]{16}|ghp_\w{36}|hf_[A-Za-z]{34}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
    found = []
    for path in tracked():
        if path.suffix in {".npz", ".png", ".flac", ".wav", ".ogg", ".safetensors", ".bin"}:
            continue
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            if path != Path(__file__) and any(p.search(line) for p in (machine_path, registry, secret)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_what_the_project_imports_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[\[=<>~!; ]", item)[0].lower().replace("-", "_") for group in groups for item in group}
    names = {
        "megatron": "megatron_core",
        "nvidia": "nvidia_dali_cuda130",
        "faiss": "faiss_cpu",
        "sklearn": "scikit_learn",
        # Part of their interfaces, and installed with them.
        "yaml": "omegaconf",
        "kfp_server_api": "kfp",
        "urllib3": "kubernetes",
        "huggingface_hub": "transformers",
    }
    used = {name.split(".")[0] for path in MODULES.values() for name in imports(path)}
    beside = {path.stem for path in (ROOT / "tools").glob("*.py")}  # a script finds its neighbours
    foreign = used - sys.stdlib_module_names - PACKAGES.keys() - beside
    assert {name for name in foreign if names.get(name, name).lower() not in declared} == set()
