"""A look at this machine: what training, its tools and its services need, each tried and not only asked for.

    for finding in examine(config): print(finding)

Nothing is left behind. The exchange between processes starts two of them, which takes some seconds.
"""

import http.client
import importlib.metadata
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import soundfile

from megatron_af.config import Config, FrontEndConfig
from megatron_af.cores import usable_cores
from megatron_af.doctor.findings import Finding, State
from megatron_af.tracking.runs import SQLITE, tracking_uri

ROOT = Path(__file__).parents[2]
PYTHON = (3, 12), (3, 14)
GIB = 2**30
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 6 * GIB, 10 * GIB, GIB
"""Below which the demo, its files, and the queues between processes become tight."""
LEAST_FILES = 4096
EXCHANGE_SECONDS, ANSWER_SECONDS = 120, 5


def examine(config: Config) -> Iterator[Finding]:
    """One finding for each part, the cheap ones first.

    Args:
        config: whose folders and services are looked at.
    """
    yield python()
    yield machine()
    yield packages()
    yield gpu()
    yield from (layers(), mel())
    yield sound_files()
    yield host_name()
    yield disk(Path(config.output), "output")
    if "://" not in config.data.root:
        yield disk(Path(config.data.root), "data.root")
    yield shared_memory()
    yield open_files()
    yield tracking(config)
    yield exchange()


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    low, high = (".".join(map(str, bound)) for bound in PYTHON)
    if PYTHON[0] <= sys.version_info[:2] <= PYTHON[1]:
        return Finding(part="Python", state=State.WORKS, told=f"{version} on {sys.platform}")
    fix = f"make .venv PYTHON=/path/to/python{low}"
    return Finding(part="Python", state=State.BROKEN, told=f"{version}, expected {low} to {high}", fix=fix)


def machine() -> Finding:
    cores, memory = usable_cores(), psutil.virtual_memory()
    told = f"{cores} cores, {memory.total / GIB:.0f} GiB of memory, {memory.available / GIB:.1f} free"
    load = os.getloadavg()[0]
    if memory.available < LEAST_MEMORY:
        fix = f"end other programs: the demo's two processes want about {LEAST_MEMORY // GIB} GiB"
        return Finding(part="machine", state=State.SLOW, told=told, fix=fix)
    if load > (os.cpu_count() or 1):  # of the machine, whatever part of it is ours
        fix = "times on this page and in the demo hold for a machine without other work"
        return Finding(part="machine", state=State.SLOW, told=f"{told}, load {load:.1f}", fix=fix)
    return Finding(part="machine", state=State.WORKS, told=told)


def packages(project: Path = ROOT / "pyproject.toml", lock: Path = ROOT / "locks/run.lock") -> Finding:
    """The project's dependencies: there, and as the lock file has them."""
    wanted = [_name(item) for item in tomllib.loads(project.read_text())["project"]["dependencies"]]
    pins = dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)", lock.read_text(), re.MULTILINE))
    missing, other = [], []
    for name in wanted:
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if name in pins and installed.partition("+")[0] != pins[name].partition("+")[0]:
            other.append(f"{name} {installed} (tested with {pins[name]})")
    if missing:
        told = f"not installed: {', '.join(missing)}"
        fix = "touch pyproject.toml, then `make .venv/ready`"
        return Finding(part="packages", state=State.BROKEN, told=told, fix=fix)
    if other:
        fix = "`make .venv/ready` in a fresh clone installs the tested versions"
        return Finding(part="packages", state=State.SLOW, told=", ".join(other), fix=fix)
    return Finding(part="packages", state=State.WORKS, told=f"{len(wanted)} packages, as tested")


def gpu() -> Finding:
    """A GPU that torch can use; one that the driver has and torch has not is what to mend."""
    from megatron_af.parallel.device import current_device

    device, driver = current_device(), _driver()
    if device.is_gpu:
        return Finding(part="GPU", state=State.WORKS, told=f"{device.name}; driver {driver or 'unknown'}")
    if driver:
        fix = "install the torch of the driver's CUDA version (docs/gpu.md), or look at `nvidia-smi`"
        return Finding(part="GPU", state=State.BROKEN, told=f"driver {driver}, but torch sees no GPU", fix=fix)
    told = "none: everything runs on the CPU, at the demo's sizes"
    return Finding(part="GPU", state=State.ABSENT, told=told)


def layers() -> Finding:
    from megatron_af.parallel.device import current_device, transformer_engine_problem

    device, problem = current_device(), transformer_engine_problem()
    if not problem:
        return Finding(part="Transformer Engine", state=State.WORKS, told="imports")
    if device.is_gpu or "cannot be imported" in problem:
        fix = "docs/gpu.md installs it; `layers: torch` does without"
        return Finding(part="Transformer Engine", state=State.SLOW, told=problem, fix=fix)
    told = "not installed; the CPU's layers are torch's"
    return Finding(part="Transformer Engine", state=State.ABSENT, told=told)


def mel() -> Finding:
    """DALI makes the mel of a second of noise, on the device that training uses."""
    from dali_pipes.mel import MelPipeline, Pcm, slower_mel
    from megatron_af.parallel.device import current_device

    if slower := slower_mel():
        return Finding(part="DALI", state=State.SLOW, told=slower, fix="pip install nvidia-dali-cuda130")
    device, front = current_device(), FrontEndConfig(window_seconds=1.0)
    wave = np.random.default_rng(0).standard_normal(front.sample_rate).astype(np.float32)
    try:
        pipeline = MelPipeline(front, device=device.dali, device_id=device.dali_id, threads=1)
        mel_WFM = pipeline.run([Pcm(0.1 * wave)], [1])
        pipeline.close()
    except RuntimeError as error:
        told = f"imports and fails: {' '.join(str(error).split())[:160]}"
        fix = "install the nvidia-dali of this CUDA version (docs/gpu.md)"
        return Finding(part="DALI", state=State.BROKEN, told=told, fix=fix)
    return Finding(part="DALI", state=State.WORKS, told=f"mel of {tuple(mel_WFM.shape)} on the {device.dali}")


def sound_files() -> Finding:
    """libsndfile writes and reads the formats of preparation and reports; FFmpeg, in PyAV, reads the others."""
    try:
        import av
    except (ImportError, OSError) as error:
        told = f"PyAV cannot be imported ({error}): m4a, webm and videos are not read"
        return Finding(part="sound files", state=State.SLOW, told=told, fix="pip install --force-reinstall av")
    missing = sorted({"FLAC", "WAV", "OGG", "MP3"} - soundfile.available_formats().keys())
    if missing:
        fix = "pip install --force-reinstall soundfile (its wheel brings libsndfile 1.2)"
        return Finding(part="sound files", state=State.BROKEN, told=f"no {', '.join(missing)}", fix=fix)
    version = soundfile.__libsndfile_version__
    return Finding(part="sound files", state=State.WORKS, told=f"libsndfile {version}, PyAV {av.__version__}")


def host_name() -> Finding:
    """Processes of two machines find each other by name; one that resolves slowly makes every start slow."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        told = f"{name} does not resolve ({error}); one machine works, several do not find each other"
        return Finding(part="host name", state=State.SLOW, told=told, fix=f"add '127.0.1.1 {name}' to /etc/hosts")
    return Finding(part="host name", state=State.WORKS, told=f"{name} is {address}")


def disk(folder: Path, key: str) -> Finding:
    """Space and the right to write, in a folder that may not be there yet."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    told = f"{free / GIB:.0f} GiB free in {folder}"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        fix = f"set {key}= to a folder that may be written"
        return Finding(part=f"disk ({key})", state=State.BROKEN, told=f"{there}: {error.strerror}", fix=fix)
    if free < LEAST_DISK:
        fix = f"free some, or set {key}=: a checkpoint is written beside the one before it"
        return Finding(part=f"disk ({key})", state=State.SLOW, told=told, fix=fix)
    return Finding(part=f"disk ({key})", state=State.WORKS, told=told)


def shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    if not place.is_dir():
        fix = "mount a tmpfs there (in a container: --ipc=host or --shm-size=8g)"
        return Finding(part="shared memory", state=State.BROKEN, told=f"no {place}", fix=fix)
    size = shutil.disk_usage(place).total
    told = f"{size / GIB:.1f} GiB in {place}"
    if size < LEAST_SHARED:
        fix = "in a container: --ipc=host or --shm-size=8g; NCCL and gloo exchange through it"
        return Finding(part="shared memory", state=State.SLOW, told=told, fix=fix)
    return Finding(part="shared memory", state=State.WORKS, told=told)


def open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        told = f"{soft} at once"
        return Finding(part="open files", state=State.SLOW, told=told, fix=f"ulimit -n {LEAST_FILES}, before the start")
    return Finding(part="open files", state=State.WORKS, told=f"{soft} at once")


def tracking(config: Config) -> Finding:
    """The MLflow server that runs would go to answers, or the folder of the sqlite store can be written."""
    uri = tracking_uri(config)
    if not config.tracking.enabled:
        return Finding(part="MLflow", state=State.ABSENT, told="tracking.enabled is false")
    if uri.startswith(SQLITE):
        found = disk(Path(uri.removeprefix(SQLITE)).parent, "tracking.uri")
        return Finding(part="MLflow", state=found.state, told=f"{uri}: {found.told}", fix=found.fix)
    if not uri.startswith(("http://", "https://")):
        return Finding(part="MLflow", state=State.WORKS, told=f"{uri}, not asked")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS):
            return Finding(part="MLflow", state=State.WORKS, told=f"{uri} answers")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            told = f"{uri} answers with {error.code}"
            fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return Finding(part="MLflow", state=State.SLOW, told=told, fix=fix)
        told = f"{uri} does not answer ({error}); runs wait on disk until it does"
        fix = "start it, correct tracking.uri or MLFLOW_TRACKING_URI, or set tracking.enabled=false"
        return Finding(part="MLflow", state=State.SLOW, told=told, fix=fix)


def exchange(seconds: float = EXCHANGE_SECONDS) -> Finding:
    """Two processes of this machine (or one per GPU) reduce tensors, as every step of training does."""
    from megatron_af.parallel.device import current_device

    device = current_device()
    what = "NCCL" if device.is_gpu else "gloo"
    processes = min(2, device.gpus) if device.is_gpu else 2
    command = [sys.executable, "-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node",
               str(processes), str(ROOT / "tools" / "measure_network.py")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        told, output = f"{processes} processes have not met after {seconds:.0f} s", ""
    else:
        output, told = done.stdout, f"{processes} processes: exit code {done.returncode}"
        if done.returncode == 0:
            rates = re.findall(r"(\d+) MiB +([\d.]+) ms +([\d.]+) GB/s", output)
            best = max((float(rate) for _, _, rate in rates), default=0.0)
            return Finding(part=what, state=State.WORKS, told=f"{processes} processes, {best:.2f} GB/s at best")
        told += f": {' '.join(done.stderr.split())[-200:]}"
    fix = "NCCL_DEBUG=INFO says where it hangs" if device.is_gpu else "a firewall on lo, or a wrong GLOO_SOCKET_IFNAME"
    return Finding(part=what, state=State.BROKEN, told=told, fix=f"{fix}; try tools/measure_network.py by itself")


def _name(requirement: str) -> str:
    return re.split(r"[\[=<>~!; ]", requirement)[0].lower()


@cache
def _smi(query: str) -> list[str]:
    """Lines of ``nvidia-smi``; empty where there is none, or no driver behind it."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _driver() -> str:
    return next(iter(_smi("driver_version")), "")
