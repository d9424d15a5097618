"""Measure a part of the project on this machine.

    python tools/bench.py data [--json FILE]

Prints tables; with ``--json`` the numbers go to a file, together with the machine and the commit. Ends with code 1
where a part of it failed. Subjects:
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_af.entry import AGAIN, command
from megatron_af.files import write
from megatron_af.progress import Progress

SUBJECTS = {
    "clap": "contrastive loss as the batch grows, and windows through mel and encoder",
    "clap-claim": "five forms of AF-CLAP's loss against the plain one: order, attributes, paraphrases (two hours)",
    "few-shot-claim": "what examples gain on sounds that were never learnt, with and without rows behind neighbours",
    "generate": "a token of an answer: with kept keys and values, with audio anew, by reading the text again",
    "retrieval": "indexes of a million embeddings: build, memory, query, recall and speed-up against exact search",
    "checkpoint": "bytes, how long training stands still, and how long until it can be read; beside the public code's",
    "compare": "two files of --json, number by number",
    "gpu": "whether a GPU computes what a CPU does, and how fast; its numbers are kept after every section",
    "serve": "a server in a crowd: failures, answers against those given alone, memory, latency (5 minutes)",
    "start": "from the launcher to the first step, and from the last step to the end, by what takes how long",
    "step": "a step with cached features, by what is padded to what, beside the public code's",
    "encode-ahead": "audio encoded ahead of the pipeline's schedule, beside audio that its first stage sends along",
    "frozen": "what a frozen language model spares on the way back",
    "plan": "rates of this machine for a file of configs/gpus, and planned against measured time of a step",
    "data": "decode, windows and mel: the reference, recordings, prepared shards, and the floor",
}
"""Subject -> what it measures; its module in ``megatron_af.bench`` has ``measure(folder, progress)`` and
``tables(result)``."""
TAKES = {"compare": ("files",), "gpu": ("seconds",), "serve": ("seconds", "clients", "model")}
"""Options that a subject has; without one, its module's default holds."""

KEEPS = ("gpu", "step")
"""Subjects whose numbers are written as they come."""


@command
def main(arguments: list[str]) -> int:
    subjects = "\n".join(f"    {name:12} {what}" for name, what in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}{subjects}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("files", nargs="*", help="compare: two files of one subject and machine")
    parser.add_argument("--json", default="", help="file for the numbers")
    parser.add_argument("--seconds", type=float, help="gpu: no section begins after these; serve: how long clients ask")
    parser.add_argument("--clients", type=int, help="serve: how many ask at the same time")
    parser.add_argument("--model", help="serve: folder of a run, stage, checkpoint or release; default: random weights")
    options = parser.parse_args(arguments)
    names = ("files", "seconds", "clients", "model")
    asked = {name: getattr(options, name) for name in names if getattr(options, name)}
    for name in asked.keys() - set(TAKES.get(options.subject, ())):
        parser.error(f"--{name}: {options.subject} does not take it")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    module = importlib.import_module(f"megatron_af.bench.{options.subject.replace('-', '_')}")
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        if options.subject in KEEPS:
            asked["keep"] = partial(keep, options.json, options.subject)
        result = module.measure(Path(folder), progress, **asked)
    Console().print(*module.tables(result))
    keep(options.json, options.subject, result)
    return AGAIN if result.get("failed") else 0


def keep(file: str, subject: str, result: dict[str, Any]) -> None:
    """Write the numbers with what they were measured on; an empty name: nowhere."""
    if file:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        machine = {"processor": _processor(), "cores": os.cpu_count()}
        record = {"subject": subject, "commit": commit.stdout.strip(), "machine": machine} | result
        write(Path(file), json.dumps(record, indent=1) + "\n")


def _processor() -> str:
    """Its name, or at least its kind."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in described.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
