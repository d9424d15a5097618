"""Every command with arguments, keys and files that are broken: it ends with a sentence of ours and a code of ours.

    python -m tests.faults.entry_points --inputs 1000 --seed 0 [--only tools.chat]      # a table of counts

A try copies a small trained run, breaks one or two things of it (an argument, a key of a configuration, a file's text,
a file), and calls one command in a process of its own. What it prints must hold no traceback, no exception's name and
no fault of the program; what fails must say something. A try that outlives its seconds of processor time has hung.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from megatron_af.config import Config, DatasetConfig, ImportConfig, NeighboursConfig
from megatron_af.config.loading import CONFIGS, to_yaml
from megatron_af.entry import AGAIN, FAULT, NO_USE
from tests.data.toy import write_tone
from tests.trained_run import trained_run

sys.path[:0] = [str(CONFIGS.parent / "tools"), str(CONFIGS.parent / "kubeflow")]

CPU_SECONDS, SECONDS = 120, 400
"""After which a try has hung: busy, or waiting (the machine may be full of other work)."""
CODES = {0, AGAIN, NO_USE, 3, 4, 42, 130, 143}
RAW = re.compile(
    r"Traceback \(most|a fault of Megatron-AF|^\w*(?:Error|Exception)\b: "
    r"|<(?:unicode|byte|file) string>|HTTPConnectionPool|Max retries exceeded|object_type=|untagged enum|\[SQL: ",
    re.MULTILINE,
)
"""A traceback, our own word for one, or the last line of one; and words of libraries that met a user before."""
ODD = re.compile(r"[\x1b\x08]|\r(?!\n)")
"""What moves a cursor or changes colours: no file gets any of it."""

RUN = ["--config", "config.yaml"]
CHECKPOINT = "runs/tiny/stage/checkpoints/step_00000001"
COMMANDS: dict[str, list[list[str]]] = {
    "bench": [["compare", "a.json", "b.json"]],
    "build_retrieval": [["index", *RUN], ["interleave", *RUN]],
    "chat": [["runs/tiny"], ["runs/tiny", "w/a.wav", "max_new_tokens=2"]],
    "compare": [["runs/tiny", "runs/tiny", "--output", "page.html"]],
    "complete": [[]],
    "convert_checkpoint": [[*RUN, "--from", "weights", "--to", "out"], [*RUN, "--from", CHECKPOINT, "--to", "out"]],
    "demo": [["--prepare", *RUN]],
    "doctor": [[*RUN]],
    "evaluate": [[*RUN, "stage=stage"], [*RUN, "stage=clap", "--rows", "held_out", "--output", "out"]],
    "expand_captions": [["--config", "job.yaml"]],
    "export": [["runs/tiny", "out"]],
    "filter_rows": [[*RUN, "stage=clap", "--rows", "held_out", "--least", "-1",
                     "--output", "kept.jsonl"]],
    "generate": [["runs/tiny", "--prompt", "w1", "--audio", "w/a.wav", "max_new_tokens=2"],
                 ["runs/tiny", "--requests", "requests.jsonl", "--output", "answers.jsonl", "max_new_tokens=2"]],
    "make_skills": [["--config", "job.yaml"]],
    "make_tokenizer": [[*RUN], [*RUN, "--from", "tokenizer.json"]],
    "measure_network": [[]],
    "mine_clips": [["cut", "--config", "mine.yaml"], ["select", "--config", "mine.yaml"]],
    "plan": [[*RUN, "--gpus", "2", "--json", "plan.json"], [*RUN, "--gpus", "1", "--stage", "stage"]],
    "prepare_data": [["import", *RUN], ["prepare", *RUN, "data.datasets.b.manifest=prepared/c"],
                     ["stats", *RUN], ["lint", *RUN],
                     ["inspect", *RUN, "--dataset", "a", "--html", "a.html"]],
    "pretrain_af": [[*RUN, f"name={name}", "stage=stage", "curriculum.stage.steps=2"] for name in ("new", "begun")],
    "pretrain_clap": [[*RUN, "name=new", "stage=clap", "curriculum.clap.steps=2"]],
    "promote": [["show", *RUN], ["register", *RUN, "--stage", "stage"],
                ["promote", *RUN, "--why", "x"], ["gate", *RUN]],
    "prove": [[*RUN, "--ranks", "2", "stage=stage"]],
    "report": [["runs/tiny", "--output", "report.html"]],
    "run_curriculum": [[*RUN, "name=new", "--dry-run"]],
    "serve": [["runs/tiny", "--config", "serving.yaml"]],
    "start": [["sounds", "--dry-run"]],
    "write_dialogues": [["--config", "job.yaml"]],
    "megatron_af.tracking.__main__": [["runs/tiny"]],
    "megatron_af.pipeline.torchrun": [["--standalone", "--nproc_per_node=1", "missing.py"]],
    "af_pipelines.__main__": [
        *([verb, *RUN] for verb in ("status", "logs", "cancel", "resume")),
        *([verb, "--cluster", "cluster.yaml"] for verb in ("reap", "smoke", "unserve", "roll-out")),
        ["compile", *RUN, "--output", "p.yaml"], ["compile", *RUN, "--cluster", "cluster.yaml", "--output", "p.yaml"],
        ["submit", *RUN, "--cluster", "cluster.yaml"], ["serve", *RUN, "--cluster", "cluster.yaml"],
        ["rollback", *RUN, "--why", "x"],
    ],
}  # fmt: skip
"""The arguments that each would do something with, by module."""

TEXTS = ("", " ", "-1", "nan", "1e999", "9" * 30, "..", "../..", "/", "/dev/null", "a\nb", "é", "x" * 300, "models:/",
         "models:/a/b/c", "[", "{a", "${a", "${oc.env:NO_SUCH}", "null", "w", "w/a.wav", "config.yaml")  # fmt: skip
CHANGES = ("=", "=1", "a..b=1", "name=", "name=[1]", "seed=1e99", "data=3", "curriculum=[]", "stage=3", "model.lm=null",
           "data.tokenizer=w", "data.root=missing", "parallel.tensor=0", "parallel.tensor=-2", "output=config.yaml",
           "[=", "a=[", "data.datasets={a: 3}", "precision=", "include=3", "--no-such-option")  # fmt: skip
VALUES: list[Any] = [None, [], {}, "", "x", -1, 0, 10**30, 1.5, float("nan"), float("inf"), True, [None], {"a": None},
                     {1: 2}, "a" * 300, "../../x", "a\0b", "é/..", [[]], "w", "/dev/null", 3]  # fmt: skip
BYTES = (b"", b"\0" * 64, b"{", b"[]", b"null", b"\xff\xfe\x00", b"<!DOCTYPE html><html>", b"{}", b"a: [", b"3", b"- a",
         b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", b"!!python/object/apply:os.abort []",
         b"\x80\x04cos\nabort\n)R.", b"include: 3", b"include: [[]]", b"include: {}", b"include: w")  # fmt: skip


REFUSED = {
    "bench": "names no subject and machine",  # to make what it compares takes minutes
    "compare": "share no suite-",
    "demo": "mixes no scenes",  # it would fetch recordings
    "expand_captions": "127.0.0.1:9",  # nobody answers at the endpoint
    "make_skills": "has no spans",
    "write_dialogues": "127.0.0.1:9",
    "mine_clips select": "text_model is not set",
    "promote promote": "",  # a gate wants measurements
    "promote gate": "",
    "megatron_af.pipeline.torchrun": "missing.py",
    "af_pipelines.__main__ submit": "on no volume of the cluster",
    "af_pipelines.__main__ rollback": "",
    **{f"af_pipelines.__main__ {verb}": "never run or submitted" for verb in ("status", "logs", "cancel", "resume")},
    **{
        f"af_pipelines.__main__ {verb}": "no Kubernetes cluster"
        for verb in ("reap", "smoke", "serve", "unserve", "roll-out")
    },
}  # fmt: skip
"""What an unbroken command line, by its beginning, is told here, for want of what the foundation does not have. All
others end with 0: a key or a file that is broken is then all that can stop them."""


def foundation(folder: Path) -> Config:
    """What every try begins with: a trained run, data sets, and a file of each kind that a command reads.

    Args:
        folder: is made.

    Raises:
        ValueError: a command that makes one of them failed.
    """
    folder.mkdir()
    config = trained_run(folder)
    for number, name in enumerate("abcd"):
        write_tone(folder / f"w/{name}.wav", 1.0, number)
    for number in range(20):  # the fewest that can be learnt from
        write_tone(folder / f"sounds/label{number % 2}/{number}.wav", 0.2, number)
    (folder / "t.csv").write_text("file,text\na.wav,w1 w2\nb.wav,w3 w4\n")
    for name, recordings in {"a": "ab", "held_out": "cd"}.items():
        rows = [
            {"id": one, "clips": [{"path": f"w/{one}.wav", "duration": 1.0}], "captions": ["w3"],
             "questions": [{"prompt": "w1", "output": f"w{number}"}]}
            for number, one in enumerate(recordings, 1)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "requests.jsonl").write_text('{"prompt": "w1", "audio": "w/a.wav"}\n')
    (folder / "a.json").write_text("{}")
    (folder / "b.json").write_text("{}")
    (folder / "job.yaml").write_text(
        "source: a.jsonl\noutput: made.jsonl\nendpoint: http://127.0.0.1:9/v1\nmodel: m\nattempts: 1\n"
    )
    (folder / "mine.yaml").write_text(
        "root: w\nvideos: videos.jsonl\nsegments: cut.jsonl\ncaptioned: cut.jsonl\noutput: made.jsonl\n"
        "shortest_seconds: 0.5\n"
    )
    (folder / "videos.jsonl").write_text('{"path": "a.wav"}\n')
    for name in ("serving/default.yaml", "cluster/local.yaml", "gates/demo.yaml"):
        shutil.copy(CONFIGS / name, folder / f"{name.partition('/')[0]}.yaml")
    origin = ImportConfig(format="csv", path="t.csv", audio="w", columns={"audio": "file", "caption": "text"})
    datasets = {
        "a": DatasetConfig(manifest="a.jsonl"),
        "held_out": DatasetConfig(manifest="held_out.jsonl"),
        "b": DatasetConfig(manifest="prepared/b", source="b.jsonl", origin=origin),
        "c": DatasetConfig(manifest="near.jsonl", neighbours=NeighboursConfig(of="a", examples=1)),
    }
    stages = {
        # The model has 128 positions, and a cluster's two nodes share a step of 8 samples.
        name: replace(
            stage, blend={"a": 1.0}, evaluation=("held_out",), max_text_tokens=64, micro_batch_samples=1,
            optimizer=replace(stage.optimizer, warmup_steps=1),
        )
        for name, stage in config.curriculum.items()
    }
    config = replace(
        config, output="runs", data=replace(config.data, root=".", tokenizer="tokenizer.json", datasets=datasets),
        curriculum=stages, retrieval=replace(config.retrieval, stage="clap", datasets=("a",)),
        registry=replace(config.registry, gates="gates.yaml"),
    )  # fmt: skip
    (folder / "config.yaml").write_text(to_yaml(config))
    for module, arguments in (
        ("prepare_data", ["import", *RUN]),
        ("prepare_data", ["prepare", *RUN]),
        ("build_retrieval", ["interleave", *RUN]),
        ("convert_checkpoint", [*RUN, "--from", CHECKPOINT, "--to", "weights"]),
        ("promote", ["register", *RUN, "--stage", "stage"]),
        ("pretrain_af", [*RUN, "name=begun", "stage=stage", "curriculum.stage.steps=1", "tracking.enabled=false"]),
    ):
        if (ended := ask(module, arguments, folder)).code:
            raise ValueError(f"{module} {arguments}: {ended}")
    return config


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int
    said: str
    seconds: float

    @property
    def fault(self) -> str:
        """What is wrong with how it ended, or nothing."""
        if self.code == FAULT or RAW.search(self.said):
            return "a fault"
        if self.code < 0:
            return f"ended by signal {-self.code}"
        if self.code not in CODES:
            return f"code {self.code}"
        return "" if self.code == 0 or self.said.strip() else f"code {self.code} without a word"


def ask(module: str, arguments: Sequence[str], folder: Path, terminal: int | None = None) -> Ended:
    """One command in a forked process, in that folder; it writes into a file, or into somebody's terminal."""
    began, out = time.monotonic(), folder.parent / "said"
    out.touch()
    if (child := os.fork()) == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.setsid()
            os.chdir(folder)
            into = os.open(out, os.O_WRONLY | os.O_TRUNC) if terminal is None else terminal
            for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, into), (2, into)):
                os.dup2(target, stream)
            sys.stdout, sys.stderr, sys.stdin = open(1, "w"), open(2, "w"), open(0)  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            signal.alarm(SECONDS)
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder.parent)
            code = _called(module, arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):  # what it left behind is its own group
        os.killpg(child, signal.SIGKILL)
    said = out.read_text(errors="replace")
    out.unlink()
    return Ended(code=os.waitstatus_to_exitcode(status), said=said, seconds=time.monotonic() - began)


def _called(module: str, arguments: Sequence[str]) -> int:
    uvicorn.run = lambda *_, **__: None  # a server that begins has understood
    sys.argv = [module, *arguments]
    main: Callable[..., int] = importlib.import_module(module).main
    first = next(iter(inspect.signature(main).parameters), "")
    try:
        return main(list(arguments)) if first in ("arguments", "argv") else main()
    except SystemExit as end:  # argparse
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return FAULT


def broken(draw: random.Random, folder: Path, arguments: list[str]) -> tuple[list[str], str]:
    """Arguments after one thing of them, or of the folder, was broken; and what that was."""
    match draw.choice(("argument", "key", "key", "file", "file")):
        case "argument":
            what = draw.choice(("drop", "replace", "change"))
            arguments = list(arguments)
            if what == "change" or not arguments:
                arguments.append(draw.choice(CHANGES))
            elif what == "drop":
                del arguments[draw.randrange(len(arguments))]
            else:
                arguments[draw.randrange(len(arguments))] = draw.choice(TEXTS)
            return arguments, f"arguments {arguments}"
        case "key":
            named = [a for a in arguments if a.endswith(".yaml") and (folder / a).is_file()]
            path = folder / draw.choice(named or ["config.yaml"])
            try:
                tree = yaml.safe_load(path.read_bytes())
            except (yaml.YAMLError, OSError, UnicodeDecodeError):
                return arguments, "nothing more"
            told = _broken_key(draw, tree) if isinstance(tree, dict) and tree else "nothing more"
            path.write_text(yaml.safe_dump(tree, allow_unicode=True))
            return arguments, f"{path.name}: {told}"
    path = draw.choice(sorted(p for p in folder.rglob("*") if not p.is_symlink()))
    return arguments, f"{path.relative_to(folder)} {_broken_file(draw, path)}"


def _broken_key(draw: random.Random, tree: dict[Any, Any]) -> str:
    way: list[str] = []
    at: Any = tree
    while True:
        key = draw.choice(list(at)) if isinstance(at, dict) else draw.randrange(len(at))
        way.append(str(key))
        if isinstance(at[key], dict | list) and at[key] and draw.random() < 0.8:
            at = at[key]
            continue
        value = draw.choice(VALUES)
        if draw.random() < 0.1 and isinstance(at, dict):
            key = draw.choice(["unknown", 3, None, "include"])
        at[key] = value
        return f"{'.'.join(way[:-1])} {key} = {value!r:.40}"


def _broken_file(draw: random.Random, path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    match draw.choice(("gone", "folder", "cut", "bytes", "bytes", "bits", "link", "loop", "pipe")):
        case "gone":
            return "is gone"
        case "folder":
            path.mkdir()
            return "is a folder"
        case "cut":
            path.write_bytes(content[: draw.randrange(len(content) + 1)])
            return "is cut"
        case "bits":
            data = bytearray(content or b"x")
            for _ in range(draw.randint(1, 8)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
            return "has other bits"
        case "link":
            path.symlink_to("nowhere")
            return "is a link to nowhere"
        case "loop":
            path.symlink_to(path.name)
            return "is a link to itself"
        case "pipe":
            os.mkfifo(path)
            return "is a pipe"
    data = draw.choice(BYTES)
    path.write_bytes(data)
    return f"is {data[:30]!r}"


def run(whole: Path, inputs: int, seed: int, only: str = "", show: Callable[[str], None] = print) -> Counter[str]:
    """Tries of each command in a copy of this foundation; how many ended badly, by command. What was broken and what
    was said is shown."""
    bad: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="megatron-af-entries-") as place:
        for module in [only] if only else COMMANDS:
            importlib.import_module(module)
        for number in range(inputs):
            draw = random.Random(f"{seed} {number}")  # each can be tried again alone
            module = only or list(COMMANDS)[number % len(COMMANDS)]
            folder = Path(place) / f"x{number}"  # a new one: what a try left running may still write into its own
            shutil.copytree(whole, folder, symlinks=True)
            arguments, done = list(draw.choice(COMMANDS[module])), []
            for _ in range(draw.choice((1, 1, 2))):
                arguments, what = broken(draw, folder, arguments)
                done.append(what)
            ended = ask(module, arguments, folder)
            shutil.rmtree(folder, ignore_errors=True)
            if number % 100 == 99:
                show(f"{number + 1} tries")
            if ended.fault:
                bad[module] += 1
                show(f"{number} {module} {arguments}\n  {'; '.join(done)}\n  {ended.fault}: {ended.said[-700:]}")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *COMMANDS])
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="megatron-af-foundation-") as place:
        foundation(whole := Path(place) / "whole")
        bad = run(whole, options.inputs, options.seed, options.only, lambda line: print(line, flush=True))
    seconds = time.monotonic() - began
    print(f"{options.inputs} tries with seed {options.seed}: {bad.total()} ended badly; {seconds:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
