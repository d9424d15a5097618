"""Does a release answer alike once it is exported? Both in processes of their own.

    trouble = try_export(Path("runs/demo/releases/3f2a91c04d7e"), questions=8)          # empty: all answers are equal
    python -m megatron_af.release.export_trial RELEASE FOLDER QUESTIONS         # what it runs: exports, asks, answers

The questions are about recordings that are made for it, of several lengths, all in one batch; the last one is about
none. The second process is a stranger's (``stranger.py``). Both compute in float32: in half precision two programs may
round a close choice differently, and both be right.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from megatron_af.files import write
from megatron_af.release.trial import LOADING_SECONDS

STRANGER = Path(__file__).with_name("stranger.py")
PROMPTS = ("what is heard?", "describe the sound.", "how many sounds are there?", "what comes first?")
NEW_TOKENS = 32
RATE = 16_000


def try_export(release: Path, questions: int) -> str:
    """Export a release into a folder beside it that goes again, and compare answers; what went wrong, or nothing."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix=".export-", dir=release.parent) as folder:
        command = [sys.executable, "-m", "megatron_af.release.export_trial", str(release), folder, str(questions)]
        ours, trouble = _answers(command, "", {**os.environ, "PYTHONPATH": path})
        if trouble:
            return f"it cannot be exported and asked: {trouble}"
        # Not under this project's paths, and with no code of an earlier export.
        command = [sys.executable, "-P", "-c", STRANGER.read_text(), f"{folder}/exported", str(NEW_TOKENS)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_MODULES_CACHE": f"{folder}/modules", "HF_HUB_OFFLINE": "1"}
        theirs, trouble = _answers(command, (Path(folder) / "chats.json").read_text(), environment)
    if trouble:
        return f"the exported folder does not load or answer: {trouble}"
    different = [place for place, (own, other) in enumerate(zip(ours, theirs, strict=True)) if own != other]
    if not different:
        return ""
    first = different[0]
    return (
        f"{len(different)} of {questions} answers differ once exported, the first: expected {ours[first]!r}, "
        f"got {theirs[first]!r}"
    )


def _answers(command: list[str], given: str, environment: dict[str, str]) -> tuple[list[str], str]:
    """What a process prints last, and what went wrong with it."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=LOADING_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return [], f"not done within {LOADING_SECONDS:.0f} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return [], lines[-1] if lines else f"exit code {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def requests(folder: Path, questions: int) -> list[dict[str, str]]:
    """Questions about bursts of noise and tones, from one to some twenty seconds long, and one about nothing."""
    random = np.random.default_rng(0)
    found = []
    for number in range(questions):
        request = {"prompt": PROMPTS[number % len(PROMPTS)]}
        if number + 1 < questions:
            time_T = np.arange(round((1 + 3.7 * number % 23) * RATE)) / RATE
            tone_T = np.sin(2 * np.pi * 110 * 1.5 ** (number % 10) * time_T) * (time_T % 1 < 0.5)
            wave_T = 0.3 * tone_T + 0.1 * random.standard_normal(len(time_T)) * (time_T % 3 < 1)
            soundfile.write(folder / f"{number}.wav", wave_T.astype(np.float32), RATE)
            request["audio"] = str(folder / f"{number}.wav")
        found.append(request)
    return found


def main() -> None:
    import torch.distributed as dist

    from megatron_af.parallel.world import join_world

    release, folder = Path(sys.argv[1]), Path(sys.argv[2])
    asked = requests(folder, int(sys.argv[3]))
    chats = [[{"role": "user", "content": _content(request)}] for request in asked]
    write(folder / "chats.json", json.dumps(chats))
    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.inference.decoding import Decoding
    from megatron_af.inference.listener import Listener
    from megatron_af.inference.requests import RequestRows
    from megatron_af.release.export import export
    from megatron_af.serve.places import find

    export(release, folder / "exported")
    config, checkpoint = find(release)
    listener = Listener(replace(config, precision="fp32"), checkpoint)
    with RequestRows() as files:
        rows = [files.row(request, f"question {number}") for number, request in enumerate(asked)]
        answers = listener(rows, root=files.root, decoding=Decoding(max_new_tokens=NEW_TOKENS))
    listener.close()
    dist.destroy_process_group()
    print(json.dumps(answers))


def _content(request: dict[str, str]) -> list[dict[str, Any]]:
    heard = [{"type": "audio", "audio": request["audio"]}] if "audio" in request else []
    return [*heard, {"type": "text", "text": request["prompt"]}]


if __name__ == "__main__":
    main()
