"""Loading YAML into the typed tree: what is merged, what is refused, and that all of it is said at once."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config, read_config, read_values, to_yaml


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "top.yaml"


def problems_of(top: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(top, overrides)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_own_keys_come_over_includes_and_overrides_over_all(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        a="{seed: 1, log_every_steps: 1, output: a, model: {lm: {layers: 8, heads: 4}}}",
        b="{seed: 2, log_every_steps: 2}",
        top="{include: [a.yaml, b.yaml], name: x, seed: 3, model: {lm: {layers: 6}}}",
    )
    config = load_config(top, ["model.lm.tied=false", "output=c"])
    assert (config.seed, config.log_every_steps, config.output) == (3, 2, "c")
    assert (config.model.lm.layers, config.model.lm.heads, config.model.lm.tied) == (6, 4, False)


def test_includes_nest_and_are_looked_for_beside_the_file_that_names_them(tmp_path: Path) -> None:
    write(tmp_path / "sub", middle="{include: [inner.yaml]}", inner="{seed: 7}")
    assert load_config(write(tmp_path, top="{include: [sub/middle.yaml], name: x}")).seed == 7


def test_a_list_replaces_a_list_and_a_section_merges(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        a="{curriculum: {one: {trainable: [a, b], blend: {x: 1}}, two: {steps: 5}}}",
        top="{include: [a.yaml], name: x, curriculum: {one: {trainable: ['lm.*'], blend: {y: 2.5}}}}",
    )
    curriculum = load_config(top).curriculum
    assert list(curriculum) == ["one", "two"]
    assert curriculum["one"].trainable == ("lm.*",)
    assert curriculum["one"].blend == {"x": 1.0, "y": 2.5}
    assert isinstance(curriculum["one"].blend["x"], float)


def test_null_takes_out_what_another_file_names(tmp_path: Path) -> None:
    write(tmp_path, a="{curriculum: {one: {blend: {x: 1, y: 2}}, two: {}}, data: {datasets: {x: {manifest: x}}}}")
    top = write(tmp_path, top="{include: [a.yaml], name: x, curriculum: {one: {blend: {y: null}}, two: null}}")
    config = load_config(top, ["steps.promote=null", "data.datasets.x=null"])
    assert list(config.curriculum) == ["one"] and config.curriculum["one"].blend == {"x": 1.0}
    assert "promote" not in config.steps and "gate" in config.steps and config.data.datasets == {}
    write(tmp_path, again="{include: [top.yaml], curriculum: {two: {steps: 7}}}")
    assert load_config(tmp_path / "again.yaml").curriculum["two"].steps == 7
    for key in ("curriculum.one.blend.z", "curriculum.three"):
        with pytest.raises(ConfigError, match=f"{key} .*: null takes out what another file names, and none names this"):
            load_config(top, [f"{key}=null"])


def test_one_default_step_can_be_changed_alone(tmp_path: Path) -> None:
    steps = load_config(write(tmp_path, top="{name: x, steps: {gate: {run: [gate.py]}}}")).steps
    assert steps["gate"].run == ("gate.py",)
    assert steps["gate"].after == Config(name="x").steps["gate"].after
    assert list(steps) == list(Config(name="x").steps)


def test_interpolation_takes_keys_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AF_DATA", "elsewhere")
    top = write(tmp_path, top="{name: x, seed: 5, log_every_steps: '${seed}', data: {root: '${oc.env:AF_DATA,d}'}}")
    config = load_config(top)
    assert config.log_every_steps == 5
    assert config.data.root == "elsewhere"


def test_resolved_yaml_loads_to_an_equal_config(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        top="{name: x, seed: '${log_every_steps}', curriculum: {s: {optimizer: {learning_rate: 3e-5},"
        " exit_gate: {loss: {max: 2}}, blend: {a: 1}}}, data: {datasets: {a: {manifest: a.jsonl}}}}",
    )
    config = load_config(top, ["curriculum.s.optimizer.eps=1e-6", "data.tokenizer="])
    assert load_config(write(tmp_path / "again", top=to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("{model: {lm: {hiden: 3}}}", "", "did you mean model.lm.hidden?"),
        ("{model: {kv_heads: 3}}", "", "did you mean model.lm.kv_heads?"),
        ("{precison: fp32}", "", "did you mean precision?"),
        ("{precision: fp16}", "", "expected bf16 or fp32, got 'fp16'"),
        ("{seed: '1'}", "", "seed (…/top.yaml): expected a whole number, got '1'"),
        ("{seed: 1.5}", "", "expected a whole number, got 1.5"),
        ("{seed: true}", "", "expected a whole number, got true"),
        ("{parallel: {sequence: 1}}", "", "expected true or false, got 1"),
        ("{output: 3}", "", "expected text, got 3"),
        ("{launch: null}", "", "launch (…/top.yaml): expected keys and values, got null"),
        ("{curriculum: {s: {trainable: lm.*}}}", "", "expected a list, got 'lm.*'; write it as [lm.*]"),
        ("{curriculum: {s: {blend: {a: b}}}}", "", "curriculum.s.blend.a (…/top.yaml): expected a number, got 'b'"),
        ("{curriculum: {7: {}}}", "", "expected text as the key, got 7; put it in quotes"),
        ("{data: {datasets: {a: {}}}}", "", "data.datasets.a.manifest (…/top.yaml): is required"),
        ("{stage: '${nix}'}", "", "nix"),
        ("{include: [missing.yaml]}", "", "include missing.yaml: no such file"),
        ("{include: [top.yaml]}", "", "includes itself"),
        ("{include: 3}", "", "include: expected names of files, such as [model/af2_3b.yaml], got 3"),
        ("{include: [[]]}", "", "include: expected names of files, such as [model/af2_3b.yaml], got []"),
        ("{include: {a: 1}}", "", "include: expected names of files, such as [model/af2_3b.yaml], got {'a': 1}"),
        ("{include: '${a}'}", "", "include: expected names of files, such as [model/af2_3b.yaml], got '${a}'"),
        ("{include: ['']}", "", "include: expected names of files, such as [model/af2_3b.yaml], got ''"),
        ("[1, 2]", "", "got a list"),
        ("a: [1", "", "cannot be read as YAML: line 2, column 1: did not find expected ',' or ']'"),
        ("scenes: {null: 1}", "", "cannot be read as YAML: scenes: a key must be text or a number; put it in quotes"),
        ("a: 1\nb: 2: 3", "", "cannot be read as YAML: line 2, column 5: mapping values are not allowed"),
        ("a: " + "[" * 20_000, "", "cannot be read as YAML: it is nested more than 100 levels deep"),
        ("{}", "seed=" + "[" * 20_000, "it is nested more than 100 levels deep"),
        ("a: " + "9" * 5000, "", "cannot be read as YAML: a number has thousands of digits"),
        ("'9'", "", "expected keys and values at the top, got a list or a single value"),
        ("{}", "seed", "seed (command line): expected key=value"),
        ("{}", "seed=[1", "seed=[1 (command line): its value is no YAML, or names no key in ${…}; in double quotes"),
        ("{}", "name=@x", "name=@x (command line): its value is no YAML"),
        ("{}", "name=${", "name=${ (command line): its value is no YAML, or names no key"),
        ("{}", "name=${oc.env:NO_SUCH_VARIABLE}", 'name: "Environment variable \'NO_SUCH_VARIABLE\' not found"'),
        ("{}", "[=", "[= (command line): "),
        ("{}", "name=0123", "name (command line): expected text, got 83; in quotes it is text"),
        ("{}", "seed=" + "9" * 400, "seed (command line): expected a whole number, got one of more digits than"),
        ("{}", "log_every_steps=" + "9" * 400, "expected a whole number, got one of more digits than can be computed"),
        ("{}", "data.prepare.max_seconds=" + "9" * 400, "expected a number, got one of more digits than can be"),
        ("{}", "seed=one", "seed (command line): expected a whole number, got 'one'"),
        ("{}", "model.lm.layer=3", "model.lm.layer (command line): unknown key; did you mean model.lm.layers?"),
        ("{curriculum: {align: {}}}", "curriculum.algn.steps=3", "not in curriculum; did you mean align?"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_fix(tmp_path: Path, text: str, override: str, expected: str) -> None:
    top = write(tmp_path, top=text.replace("{", "{name: x, ", 1) if text != "{}" else "{name: x}")
    (problem,) = problems_of(top, *filter(None, [override]))
    assert expected in problem.replace(str(tmp_path), "…")


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    top = write(tmp_path, a="{seed: x}", top="{include: [a.yaml], parallel: {tensr: 2}, stage: '${nix}'}")
    problems = problems_of(top, "log_every_steps=often")
    places = ["stage: ", "name: is required", f"seed ({tmp_path}/a.yaml)", "parallel.tensr", "log_every_steps (command"]
    assert len(problems) == len(places)
    assert all(problem.startswith(place) for problem, place in zip(problems, places, strict=True))


def test_what_could_be_read_goes_on_to_be_checked(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        top="{seed: x, output: out, precison: bf16, stage: '${nix}', model: {lm: {hiden: 63, heads: five}},"
        " data: {root: '${output}/d', datasets: {a: {}}}, curriculum: {s: {trainable: [lm.*, 3], blend: {a: b}}}}",
    )
    config, unread = read_config(top)
    assert (config.seed, config.output, config.model.lm.heads) == (0, "out", Config(name="x").model.lm.heads)
    assert config.curriculum["s"].trainable == ("lm.*",) and config.curriculum["s"].blend == {}
    assert len(unread.problems) == 9
    guessed = {"precision", "model.lm.hidden"}
    assert guessed | {"name", "seed", "stage", "model.lm.heads", "data.datasets.a.manifest"} <= unread.keys
    told = ["model.lm.heads = 16 does not divide model.lm.hidden = 2048", "data.datasets.a.manifest = x: not there"]
    new = ["model.lm.kv_heads = 3", "model.lm.hidden_too = 3", "data.datasets.ab.manifest = x"]
    assert unread.and_also([*told, *new]) == [*unread.problems, *new]


def test_a_missing_top_file_is_one_plain_problem(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "top.yaml") == (f"{tmp_path / 'top.yaml'}: no such file",)


@dataclass(frozen=True, kw_only=True)
class Volume:
    claim: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Cluster:
    volumes: tuple[Volume, ...] = ()


def test_other_trees_of_dataclasses_load_the_same_way(tmp_path: Path) -> None:
    top = write(tmp_path, top="{volumes: [{claim: data}]}")
    assert read_values(Cluster, top).volumes == (Volume(claim="data"),)
    write(tmp_path, top="{volumes: [{claim: data, readonly: true}]}")
    with pytest.raises(ConfigError, match=r"did you mean volumes\[0\]\.read_only"):
        read_values(Cluster, top)


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "a pipe"), (os.mkdir, "a folder")])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None], what: str) -> None:
    make(tmp_path / "other.yaml")
    (problem,) = problems_of(tmp_path / "other.yaml")
    assert problem == f"{tmp_path}/other.yaml: expected a YAML file, got {what}"
    (problem,) = problems_of(write(tmp_path, top="{name: x, include: [other.yaml]}"))
    assert "other.yaml: expected a YAML file" in problem


@pytest.mark.parametrize("key", ["parallel.tensor", "parallel.virtual_pipeline", "model.lm.heads"])
def test_a_number_out_of_its_range_is_refused_by_every_command(key: str) -> None:
    """Here, for some would divide by it before they look at anything else."""
    with pytest.raises(ConfigError, match=rf"cannot be used(?s:.*){key} = 0: must be at least 1"):
        load_config("configs/demo.yaml", [f"{key}=0"])
    assert not read_config("configs/demo.yaml", [f"{key}=0"])[1].problems, "a check tells it with all others"
