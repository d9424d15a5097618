"""A server in a crowd: what its clients get, how long they wait, and what it keeps of them.

    result = measure(Path(folder), progress, clients=50, seconds=300)        # tools/bench.py serve
    result = measure(Path(folder), progress, model="runs/demo")

Requests of every form, one of them wrong, are asked alone first. Then each client asks them in turn, and the next as
soon as it is answered: whole, as a stream, with settings; now and then it leaves a stream after its first piece. There
are fewer places than clients, so some get 429 and ask again after as long as it says. The server is a process of its
own, ``tools/serve.py``; the default model has the demo's shapes and random weights.
"""

import base64
import http.client
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from rich.table import Table

from megatron_af.config.loading import CONFIGS, load_config, to_yaml
from megatron_af.files import write
from megatron_af.progress import Progress
from megatron_af.text.words import build as build_tokenizer

SERVE = Path(__file__).parents[2] / "tools/serve.py"
CLIENTS, SECONDS = 50, 300.0
TOGETHER = 16
"""Answers that are written together."""
WITHOUT_PLACE = 0.2
"""Share of the clients that finds no place while all others have one."""
LEAVES = 20
"""A client leaves every so-maniest of its streams after the first piece."""
LONGEST = 32
"""Tokens of an answer."""
RATE, RECORDINGS = 16_000, {"short": 1.5, "middle": 9.0, "long": 27.0}
"""Seconds of each."""
STARTING_SECONDS, ANSWERING_SECONDS = 300, 120
WORDS = ("what is heard first and then a dog barks", "rain falls: describe it in one word", "how loud, how long")


def measure(
    folder: Path, progress: Progress, *, clients: int = CLIENTS, seconds: float = SECONDS, model: str = ""
) -> dict[str, Any]:
    """
    Args:
        model: what ``tools/serve.py`` takes; default: random weights.

    Returns:
        ``requests`` by status, ``failures`` (neither answered as alone nor 429), ``different`` answers, ``left``
        streams, ``held`` places when all have gone, ``latency`` and ``first piece`` in seconds (p50 and p95),
        ``tokens/s``, ``rows together`` (mean), ``MiB`` of the server's memory (start, middle, end, most).
    """
    places = max(TOGETHER, round(clients * (1 - WITHOUT_PLACE)))
    settings = [f"batch_requests={TOGETHER}", f"waiting_requests={places - TOGETHER}"]
    with _serving(folder, model or str(_untrained(folder)), settings) as (port, process):
        server = _Server(port)
        asked = requests(server.name)
        alone = [server.ask(body) for body in asked]
        crowd = _Crowd(server, asked, alone, until=time.monotonic() + seconds)
        before, began, memory = server.counts(), time.monotonic(), [_mib(process)]
        threads = [threading.Thread(target=crowd.client, args=(number,), daemon=True) for number in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(1.0, seconds / 10))
            memory.append(_mib(process))
            gone = min(time.monotonic() - began, seconds)
            progress.update("seconds", round(gone), round(seconds), f"{len(crowd.latency)} answers")
        took, after = time.monotonic() - began, server.counts()
        held = _settled(server)
    tokens = after["af_new_tokens_total"] - before["af_new_tokens_total"]
    steps = after["af_batch_requests_count"] - before["af_batch_requests_count"]
    together = after["af_batch_requests_sum"] - before["af_batch_requests_sum"]
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "requests": dict(sorted(crowd.statuses.items())),
        "failures": crowd.failures,
        "different": crowd.different,
        "left": crowd.left,
        "held": held,
        "latency": _percentiles(crowd.latency),
        "first piece": _percentiles(crowd.first_piece),
        "tokens/s": tokens / took,
        "rows together": together / max(steps, 1),
        "MiB": {
            "start": memory[0], "middle": memory[len(memory) // 2], "end": memory[-1], "most": max(memory)
        },
    }  # fmt: skip


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    table = Table("", "measured", title=f"{result['clients']} clients for {result['seconds']:.0f} s")
    for status, count in result["requests"].items():
        table.add_row(f"requests with status {status}", f"{count}")
    for name in ("failures", "different", "left", "held"):
        many = result[name]
        table.add_row(name, f"{len(many)}: {many[0]}" if isinstance(many, list) and many else f"{many or 0}")
    for name in ("latency", "first piece"):
        table.add_row(f"{name}, s", ", ".join(f"{which} {value:.2f}" for which, value in result[name].items()))
    table.add_row("tokens/s", f"{result['tokens/s']:.0f}")
    table.add_row("rows together", f"{result['rows together']:.1f}")
    table.add_row("memory, MiB", ", ".join(f"{when} {mib}" for when, mib in result["MiB"].items()))
    return [table]


def requests(model: str) -> list[dict[str, Any]]:
    """Of every form; the last one must be refused."""
    heard = {name: _input_audio(seconds, seed) for seed, (name, seconds) in enumerate(RECORDINGS.items())}

    def user(*parts: str) -> dict[str, Any]:
        return {"role": "user", "content": [heard.get(part) or {"type": "text", "text": part} for part in parts]}

    def model_said(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    conversations: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        ([user("short", "what is heard")], {}),
        ([user("long", "describe it")], {}),
        ([user("middle", "how long is it")], {"n": 3, "temperature": 0.8, "seed": 5}),
        ([user("what does a dog say")], {"max_tokens": 4}),
        ([user("short", "what is heard"), model_said("a dog"), user("how loud is it")], {"logprobs": True}),
        ([{"role": "system", "content": "in one word"}, user("middle", "what is heard")], {"stop": ["rain"]}),
        ([user("middle", "what is it"), model_said("rain"), user("short", "what is it")], {}),
        ([user("long", "what is first <audio> and <SEP> then")], {"temperature": 0.5, "top_p": 0.9, "seed": 1}),
        ([user("short", "many " * 4_000)], {}),
    ]
    return [{"model": model, "messages": turns, "max_tokens": LONGEST} | more for turns, more in conversations]


def _input_audio(seconds: float, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    time_T = np.arange(round(seconds * RATE)) / RATE
    wave_T = 0.3 * np.sin(2 * np.pi * 110 * (seed + 2) * time_T) + 0.1 * random.standard_normal(len(time_T))
    file = io.BytesIO()
    soundfile.write(file, wave_T.astype(np.float32), RATE, format="WAV", subtype="PCM_16")
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}}


type Said = tuple[int, Any]
"""Status, and the texts of all choices, or the sentence that refuses."""


class _Server:
    """What its clients see of it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.name: str = json.loads(self._get("/v1/models"))["data"][0]["id"]

    def ask(self, body: Mapping[str, Any]) -> Said:
        """A whole answer."""
        with self._post(body) as answer:
            said = json.loads(answer.read())
        if answer.status != 200:
            return answer.status, said["error"]["message"]
        return answer.status, [choice["message"]["content"] for choice in said["choices"]]

    def stream(self, body: Mapping[str, Any], *, leave: bool = False) -> tuple[Said | None, float]:
        """A streamed answer, None of one that was left; and the seconds until its first piece."""
        began, first = time.monotonic(), 0.0
        texts = [""] * body.get("n", 1)
        with self._post({**body, "stream": True}) as answer:
            if answer.status != 200:
                return (answer.status, json.loads(answer.read())["error"]["message"]), time.monotonic() - began
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                for choice in json.loads(line.removeprefix(b"data: ")).get("choices", ()):
                    first = first or time.monotonic() - began
                    texts[choice["index"]] += choice["delta"].get("content") or ""
                if leave:
                    return None, first
        return (200, texts), first

    def counts(self) -> dict[str, float]:
        lines = (line.rsplit(" ", 1) for line in self._get("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    @contextmanager
    def _post(self, body: Mapping[str, Any]) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWERING_SECONDS)
        try:
            data = json.dumps(body).encode()
            connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
            yield connection.getresponse()
        finally:
            connection.close()

    def _get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWERING_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


@dataclass
class _Crowd:
    """Clients, each on a thread of its own, and what they met; appending to a list is safe among threads."""

    server: _Server
    asked: list[dict[str, Any]]
    alone: list[Said]
    until: float
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    left: int = 0
    latency: list[float] = field(default_factory=list)
    first_piece: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, number: int) -> None:
        turn = number
        while time.monotonic() < self.until:
            try:
                answered = self._one(turn % len(self.asked), streamed=turn % 2 == 0, leave=turn % LEAVES == 0)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._count("none", failure=f"request {turn % len(self.asked)}: {type(error).__name__}: {error}")
                answered = False
            if answered:
                turn += 1
            else:
                time.sleep(1)

    def _one(self, place: int, *, streamed: bool, leave: bool) -> bool:
        """Whether it had a place."""
        body, began = self.asked[place], time.monotonic()
        said: Said | None
        if streamed:
            said, first = self.server.stream(body, leave=leave)
        else:
            said, first = self.server.ask(body), 0.0
        took = time.monotonic() - began
        if said is None:
            with self._lock:
                self.left += 1
            return True
        status, texts = said
        failure = different = ""
        if status not in (self.alone[place][0], 429):
            failure = f"request {place}: status {status}: {texts}"
        elif status != 429 and said != self.alone[place]:
            different = f"request {place}: expected {self.alone[place][1]}, got {texts}"
        self._count(str(status), failure=failure, different=different)
        if status == 200:
            self.latency.append(took)
            if streamed:
                self.first_piece.append(first)
        return status != 429

    def _count(self, status: str, *, failure: str = "", different: str = "") -> None:
        with self._lock:
            self.statuses[status] += 1
            self.failures += [failure] if failure else []
            self.different += [different] if different else []


def _settled(server: _Server) -> int:
    """Places that are held when everybody has gone; what was left a moment ago may take a moment to end."""
    until = time.monotonic() + 10
    while (held := server.counts()["af_requests_held"]) and time.monotonic() < until:
        time.sleep(0.1)
    return int(held)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(seconds or [0.0], [50, 95]).tolist()
    return {"p50": p50, "p95": p95}


def _mib(process: psutil.Process) -> int:
    return int(process.memory_info().rss // 2**20)


@contextmanager
def _serving(folder: Path, model: str, settings: list[str]) -> Iterator[tuple[int, psutil.Process]]:
    """The port of a server that listens, and its process.

    Raises:
        RuntimeError: it ended, with what it said last; or it does not come.
    """
    log = folder / "server.log"
    with log.open("a") as said:
        command = [sys.executable, str(SERVE), model, "port=0", *settings]
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        until = time.monotonic() + STARTING_SECONDS
        while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server of {model} did not start: {log.read_text().strip()[-1000:]}")
            time.sleep(0.1)
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _untrained(folder: Path) -> Path:
    """A run of the demo's shapes, with random weights and open gates: it says nothing sensible, but depends on what it
    hears."""
    import torch
    import torch.distributed as dist

    from megatron_af.parallel.device import current_device
    from megatron_af.parallel.world import join_world

    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.model import Vocabulary, build
    from megatron_af.parallel import groups as process_groups
    from megatron_af.runs.objectives import spec_of
    from megatron_af.runs.paths import Resume
    from megatron_af.text.tokenizer import Tokenizer
    from megatron_af.train.checkpoint import Checkpoints

    config = load_config(CONFIGS / "demo.yaml", [f"output={folder}", f"data.root={folder}", "stage=long"])
    write(Path(config.data.tokenizer), build_tokenizer(WORDS).to_str())
    tokenizer = Tokenizer.load(config.data.tokenizer)
    vocabulary = Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)
    groups = process_groups.initialize(config.parallel, config.seed)
    try:
        torch.manual_seed(0)
        model = build(config, vocabulary, current_device())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "gate_" in name:
                    parameter.fill_(1.0)
                elif parameter.dim() > 1:  # so that the likeliest tokens lie apart, as those of trained weights
                    parameter.mul_(3.0)
        resume = Resume(stage=config.stage, step=0, skipped=0, samples=0, world_size=1)
        stage = config.curriculum[config.stage]
        checkpoints = Checkpoints(config.stage_folder(config.stage) / "checkpoints", keep=1)
        checkpoints.save(model, None, groups, resume, {}, spec_of(stage).parts_of(stage), to_yaml(config))
    finally:
        process_groups.destroy()
        dist.destroy_process_group()
    return config.stage_folder(config.stage)
