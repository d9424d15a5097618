"""What docs/kubeflow.md and the shipped files tell a reader to type works: commands, files, and runs that fit."""

import re
import shlex
from pathlib import Path

import pytest

from af_pipelines import commands
from af_pipelines.__main__ import _parser
from af_pipelines.cluster import check_on_kubernetes, check_placements, load_cluster
from megatron_af.config.loading import load_config

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/kubeflow.md").read_text()
CLUSTERS = [path.read_text() for path in sorted((ROOT / "configs/cluster").glob("*.yaml"))]
COMMANDS = sorted(
    {
        " ".join(line.replace("python -m af_pipelines", "af-pipelines").split("#")[0].split())
        for text in (DOC, *CLUSTERS)
        for line in re.findall(r"^(?:\$|#)\s+((?:af-pipelines|python -m af_pipelines) .*)$", text, flags=re.MULTILINE)
    }
)


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} >= {"run", "submit", "serve", "unserve"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse_and_their_runs_fit_the_cluster(command: str) -> None:
    options = _parser().parse_args(shlex.split(command)[1:])
    changes = [text.removeprefix("cluster.") for text in options.overrides if text.startswith("cluster.")]
    cluster = load_cluster(str(ROOT / options.cluster), changes)
    if "config" not in options:
        return
    overrides = [text for text in options.overrides if not text.startswith("cluster.")]
    config = load_config(ROOT / options.config, [*cluster.overrides, *overrides])
    assert check_placements(config, cluster) == []
    assert options.command is not commands.submit or check_on_kubernetes(config, cluster) == []
    assert config.registry.gates, "the last steps hold the model against them"


def test_verbs_of_the_table_exist() -> None:
    table = re.findall(r"^\| `(\w+) --config FILE", DOC, flags=re.MULTILINE)
    assert {"status", "logs", "cancel", "resume", "run"} <= set(table)
    for verb in table:
        _parser().parse_args([verb, "--config", "FILE"])


def test_files_exist() -> None:
    named = set(re.findall(r"(?<![\w./])((?:kubeflow|configs|tools)/[\w./-]+)", DOC))
    assert {"kubeflow/manifests/overlays/cpu", "kubeflow/images/cpu.Dockerfile"} <= named
    assert [name for name in sorted(named) if not (ROOT / name.rstrip(".")).exists()] == []
