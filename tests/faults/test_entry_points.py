"""The short form of ``tests/faults/entry_points.py``, and that it finds what it is for."""

import importlib
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from megatron_af.config.loading import CONFIGS
from megatron_af.entry import AGAIN, NO_USE
from tests.faults import entry_points
from tests.faults.entry_points import COMMANDS, ODD, REFUSED, RUN, ask, broken

CANARIES = {
    "MLFLOW_TRACKING_USERNAME": "canary-user-5f1e",
    "MLFLOW_TRACKING_PASSWORD": "canary-password-5f1e",
    "MLFLOW_TRACKING_TOKEN": "canary-token-5f1e",
    "AF_SERVING_KEYS": "canary-client-5f1e",
    "AF_PIPELINES_TOKEN": "canary-pipelines-5f1e",
    "OPENAI_API_KEY": "canary-model-5f1e",
    "HF_TOKEN": "canary-hub-5f1e",
    "AWS_SECRET_ACCESS_KEY": "canary-store-5f1e",
}
ADDRESS = "http://user:canary-address-5f1e@127.0.0.1:9"
TRACKED, RUN_NEW = f"tracking.uri={ADDRESS}", [*RUN, "name=leak", "stage=stage", "curriculum.stage.steps=1"]
WITH_ADDRESS: tuple[tuple[str, list[str], str], ...] = (
    ("pretrain_af", [*RUN_NEW, TRACKED], "tracking.uri"),
    ("pretrain_af", [*RUN_NEW, f"nonsense={ADDRESS}"], "nonsense"),
    ("run_curriculum", [*RUN, "name=leak", TRACKED], "tracking.uri"),
    ("evaluate", [*RUN, "stage=stage", f"evaluation.judge.endpoint={ADDRESS}/v1"], "evaluation.judge.endpoint"),
    ("promote", ["show", *RUN, TRACKED], "tracking.uri"),
    ("doctor", [*RUN, TRACKED], "tracking.uri"),
    ("prepare_data", ["prepare", *RUN, f"data.root={ADDRESS}"], "data.root"),
    ("start", ["sounds", "--dry-run", f"data.root={ADDRESS}"], "data.root"),
    *(
        (tool, ["--config", "job.yaml", f"endpoint={address}"], "endpoint")
        for tool in ("expand_captions", "make_skills", "write_dialogues")
        for address in (f"{ADDRESS}/v1", "http://127.0.0.1:9/v1?key=canary-key-5f1e")
    ),
    ("serve", ["runs/tiny", "--config", "serving.yaml", f"host={ADDRESS}"], "host"),
    ("chat", ["runs/tiny", f"temperature={ADDRESS}"], "temperature"),
    ("report", [ADDRESS], "127"),
    ("pretrain_af", [*RUN_NEW, f"--uri={ADDRESS}"], "uri"),
    ("af_pipelines.__main__", ["compile", *RUN, "--output", "leak.yaml", TRACKED], "tracking.uri"),
    ("af_pipelines.__main__", ["submit", *RUN, "--cluster", "leaking.yaml"], "endpoint"),
)
"""Commands, their arguments, and the key by which each refuses an address that holds a password."""
WITHIN_ENVIRONMENT: tuple[tuple[str, list[str]], ...] = (
    ("pretrain_af", RUN_NEW),
    ("promote", ["show", *RUN]),
    ("doctor", []),
    ("chat", ["models:/demo@champion"]),
    ("prepare_data", ["prepare", *RUN]),
    ("expand_captions", ["--config", "job.yaml"]),
    ("af_pipelines.__main__", ["compile", *RUN, "--output", "leak.yaml"]),
    ("af_pipelines.__main__", ["roll-out", "--cluster", "cluster.yaml"]),
)


def test_every_command_is_tried() -> None:
    tools = {path.stem for path in (CONFIGS.parent / "tools").glob("*.py")}
    assert tools == {name for name in COMMANDS if "." not in name}


def test_the_same_seed_breaks_the_same(tmp_path: Path) -> None:
    seen = []
    for seed in (3, 3, 4):
        (tmp_path / "config.yaml").write_text("a: {b: 1, c: [2, 3]}\n")
        seen.append(broken(random.Random(seed), tmp_path, ["--config", "config.yaml"]))
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_unbroken_commands_do_what_they_are_for(foundation_folder: Path, tmp_path: Path) -> None:
    lines = 0
    for module in COMMANDS:
        importlib.import_module(module)
    for module, known in COMMANDS.items():
        for arguments in known:
            folder, lines = tmp_path / f"x{lines}", lines + 1
            shutil.copytree(foundation_folder, folder)
            ended = ask(module, arguments, folder)
            line = f"{' '.join([module, *arguments])} "
            refused = [said for begin, said in REFUSED.items() if line.startswith(f"{begin} ")]
            assert not ended.fault and bool(ended.code) == bool(refused), f"{line}: {ended}"
            assert all(said in ended.said for said in refused), f"{line}: {ended}"
            assert not ODD.search(ended.said), f"{line}: {ended.said!r}"


@pytest.mark.slow
def test_every_broken_command_ends_with_a_sentence_and_a_code_of_ours(foundation_folder: Path) -> None:
    shown: list[str] = []
    assert not entry_points.run(foundation_folder, len(COMMANDS), 0, show=shown.append), "\n".join(shown)


@pytest.mark.slow
def test_a_command_that_raises_is_found(foundation_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> int:
        raise KeyError("parts")

    monkeypatch.setattr(importlib.import_module("report"), "main", main)
    shown: list[str] = []
    assert entry_points.run(foundation_folder, 2, 0, "report", shown.append)["report"] == 2
    assert "KeyError: 'parts'" in shown[0]


def holds_canary(path: Path) -> bool:
    try:
        return b"canary" in path.read_bytes()
    except FileNotFoundError:  # a journal of the database, which a process of its own still writes
        return False


def there(folder: Path) -> set[Path]:
    """Every file and folder, but for where the sender of the run ``new`` may still be busy."""
    busy = (folder / "runs/mlflow", folder / "runs/new")
    return {path for path in folder.rglob("*") if not any(path.is_relative_to(place) for place in busy)}


@pytest.mark.slow
def test_no_secret_is_printed_or_written(
    foundation_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, its checkpoint, MLflow's database and spool, a pipeline's IR and errors are searched.

    Of an address that holds one, nothing is written at all.
    """
    folder = tmp_path / "x"
    shutil.copytree(foundation_folder, folder)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    run = ["--config", "config.yaml"]
    said = ""
    for module, arguments, code in (
        ("pretrain_af", [*run, "name=new", "stage=stage", "curriculum.stage.steps=2"], 0),
        ("af_pipelines.__main__", ["compile", *run, "--output", "ir.yaml"], 0),
        ("make_skills", ["--config", "job.yaml", "endpoint=http://127.0.0.1:9/v1", "model=m"], AGAIN),
        ("serve", ["runs/nothing", "--config", "serving.yaml"], NO_USE),
        ("pretrain_af", [*run, "stage=stage", "parallel.tensor=7"], NO_USE),
    ):
        importlib.import_module(module)
        ended = ask(module, arguments, folder)
        assert ended.code == code, ended
        said += ended.said
    assert "canary" not in said
    late = time.monotonic() + 120
    while not list(folder.rglob("sent.json")) and time.monotonic() < late:  # by a process of its own
        time.sleep(0.2)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"ir.yaml", "mlflow.db", "checkpoint.json", "sent.json"} <= {path.name for path in files}
    assert [path for path in files if holds_canary(path)] == []
    (folder / "leaking.yaml").write_text(f"{(folder / 'cluster.yaml').read_text()}\nendpoint: {ADDRESS}\n")
    before = there(folder)
    asked = [(module, arguments, key, "") for module, arguments, key in WITH_ADDRESS]
    asked += [(module, arguments, "MLFLOW_TRACKING_URI", ADDRESS) for module, arguments in WITHIN_ENVIRONMENT]
    for module, arguments, key, variable in asked:
        importlib.import_module(module)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", variable)
            ended = ask(module, arguments, folder)
        assert ended.code == NO_USE and re.search(rf"\b{key}\b.*: holds a password", ended.said), f"{module}: {ended}"
        assert "canary" not in ended.said, f"{module}: {ended}"
    assert there(folder) == before
    (folder / "leaking.yaml").unlink()
    assert [path for path in folder.rglob("*") if path.is_file() and holds_canary(path)] == []
    (folder / "leak").write_text(os.environ["HF_TOKEN"])
    assert [path.name for path in folder.rglob("*") if path.is_file() and holds_canary(path)] == ["leak"]
