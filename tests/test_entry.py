"""How commands end: what is told, with which exit code, and that no traceback reaches a user."""

import errno
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistBackendError, DistNetworkError

from megatron_af import entry
from megatron_af.config import Config, ConfigError
from megatron_af.entry import Cancelled, cancellable, command, sentence
from megatron_af.pipeline.job import StepFailed
from megatron_af.pipeline.stages import ExitGateFailed
from megatron_af.prepare.sharding import recipe
from megatron_af.runs.lock import StageBusy
from megatron_af.runs.paths import CheckpointError

ROOT = Path(__file__).parents[1]


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("x cannot run", ["a = 1: lower it"]), 2, "x cannot run: 1 problem\n  - a = 1: lower it"),
        (StageBusy("somebody writes here"), 1, "somebody writes here"),
        (StepFailed("align failed"), 1, "align failed"),
        (StepFailed("align failed", give_up=True), 2, "align failed"),
        (ExitGateFailed("align: loss too high"), 4, "align: loss too high"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.jsonl"), 2, "rows.jsonl: No such file"),
        (OSError(errno.ENOSPC, "No space left on device", "a.part"), 1, "a.part: No space left on device"),
        (ConnectionRefusedError("the server is away"), 1, "the server is away"),
        (ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"), 2, "the module psycopg2 is missing"),
        (ImportError("Install s3fs to access S3"), 2, "Install s3fs to access S3: install the package that has it"),
        (Cancelled(signal.SIGINT), 130, "stopped by SIGINT; the same command goes on from there"),
    ],
)
def test_what_is_told_and_how_it_ends(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(raising(error))() == code
    shown = capsys.readouterr().err
    assert shown.startswith(said) and "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_without_standard_streams(closed: str, tmp_path: Path) -> None:
    """And what is printed is in no file that it writes."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from megatron_af.entry import command\n"
        "@command\n"
        "def main():\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        for number in (1, 2): os.write(number, b'of a library')\n"
        "        print('hello'), print('hello', file=sys.stderr), file.write(f'read {sys.stdin.readline()!r}')\n"
        "    if len(sys.argv) > 2: raise ValueError('cannot be')\n"
        "    return 0\n"
        "sys.exit(main())\n"
    )
    for more, code in (("", 0), ("more", 2)):
        done = subprocess.run(
            f"exec '{sys.executable}' {program} {tmp_path / 'out'} {more} {closed}", shell=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert (tmp_path / "out").read_text() == "read ''" and "Traceback" not in done.stderr


GLOO = "/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537]"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited or there was a network error, NCCL 2\nmore"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(f"[{GLOO} Connection closed by peer [10.0.0.1]:2. This is usual. GLHF!"), "closed by peer"),
        (RuntimeError(f"[{GLOO} Timed out waiting 1800000ms for recv operation to complete"), "Timed out waiting"),
        (DistBackendError(NCCL), "remote process exited or there was a network error"),
        (DistNetworkError("failed to recv, got 0 bytes"), "failed to recv, got 0 bytes"),
        (RuntimeError(f"[enforce fail at {GLOO} op.preamble.length <= op.nbytes. 64 vs 40"), ""),
        (DistBackendError("NCCL error: Duplicate GPU detected"), ""),
        (RuntimeError("shapes do not match"), ""),
    ],
)
def test_who_loses_peers_says_so(error: BaseException, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not every one of 512 a traceback, among which the one that explains them is not found."""
    assert sentence(error) is None, "a command without peers"
    monkeypatch.setenv("RANK", "3")
    if not lost:
        assert sentence(error) is None, "a fault of the program"
    else:
        told, code = sentence(error) or ("", 0)
        assert told.startswith("process 3 lost a peer (") and lost in told and "\n" not in told and code == entry.AGAIN


def test_who_loses_a_peer_ends_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher goes by who ended first, and the peer, whose code says why, is still on its way out."""
    waited: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)  # as training leaves it
    monkeypatch.setenv("RANK", "0")

    def loses() -> int:
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")

    try:
        assert entry.command(loses)() == entry.AGAIN and not waited, "no launcher waits for it"
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert entry.command(loses)() == entry.AGAIN and waited == [entry.SEEN_SECONDS]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "and can be ended meanwhile"
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_name_that_a_module_lacks_is_a_fault() -> None:
    assert sentence(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None
    assert sentence(ModuleNotFoundError("No module named 'megatron_af.x'", name="megatron_af.x")) is None


def test_a_value_that_a_library_refuses_is_no_message_of_ours() -> None:
    with pytest.raises(ValueError) as theirs:
        json.loads("{")
    assert sentence(theirs.value) is None
    with pytest.raises(ValueError) as ours:
        recipe(Config(name="x"), "clotho")
    told = sentence(ours.value)
    assert told is not None and told[0].startswith("data.datasets.clotho: preparing needs source") and told[1] == 2


@pytest.mark.parametrize(
    ("body", "is_ours"),
    [
        ("raise ValueError('x: expected a number')", True),
        ("int('12,5')", False),  # no frame of its own says so
        ("b'\\xff'.decode()", False),
        ("[][:0].index(3)", False),
        ("\n  try: int('x')\n  except ValueError as e: raise ValueError('told') from e", True),
        ("\n  try: raise ValueError('x')\n  finally: sum([])", True),
        ("\n  try: int('x')\n  finally: sum([])", False),
    ],
)
def test_what_c_refuses_in_a_line_of_ours_is_no_message_either(body: str, is_ours: bool) -> None:
    made: dict[str, Any] = {"__name__": "megatron_af.made"}
    exec(f"def run():\n  {body}", made)
    with pytest.raises(ValueError) as caught:
        made["run"]()
    assert (sentence(caught.value) is not None) == is_ours


def test_a_fault_is_told_in_one_line_and_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(entry.tempfile, "tempdir", str(tmp_path))
    assert command(raising(TypeError("unsupported\noperand")))() == 70
    (kept,) = tmp_path.glob("megatron-af-*.traceback")
    shown = capsys.readouterr().err
    assert shown.startswith("a fault of Megatron-AF: TypeError: unsupported operand (test_entry.py, line ")
    assert shown.endswith(f"please report it with {kept}\n") and shown.count("\n") == 1
    assert "Traceback" in kept.read_text()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(TypeError):
        command(raising(TypeError("a launcher keeps the log")))()


def test_other_processes_of_a_node_let_the_first_one_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    assert command(raising(ConfigError("no")))() == 2 and waited == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert command(raising(ConfigError("no")))() == 2 and waited == [60]
    assert command(raising(StageBusy("only this one")))() == 1 and waited == [60]
    assert command(raising(CheckpointError("all", exit_code=1, on_all_ranks=True)))() == 1 and waited == [60, 60]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_python_drops_is_heard_again(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """What is raised in a callback, such as that of an import's lock, is printed and forgotten otherwise."""

    class Thing:
        pass

    thing, hook = Thing(), sys.unraisablehook
    dropped = weakref.ref(thing, lambda _: signal.raise_signal(number))
    with pytest.raises(Cancelled, match=number.name), cancellable():
        del thing
        assert dropped() is None
        time.sleep(10)
        raise AssertionError("nobody was cancelled")
    assert capfd.readouterr().err == "" and sys.unraisablehook is hook


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_cancels_and_the_next_change_nothing(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopped = []
    with pytest.raises(Cancelled, match=number.name) as caught, cancellable():
        try:
            os.kill(os.getpid(), number)
            stopped.append("not asked")
        except Exception:
            stopped.append("an error")
        finally:
            os.kill(os.getpid(), number)
            stopped.append("cleaned up")
    assert stopped == ["cleaned up"] and caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_inside_another_and_in_other_threads_it_is_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with cancellable():
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before
        with cancellable():
            assert signal.getsignal(signal.SIGTERM) == ours
        assert signal.getsignal(signal.SIGTERM) == ours
    assert signal.getsignal(signal.SIGTERM) == before
    seen = []

    def elsewhere() -> None:
        with cancellable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
def test_a_forked_child_ends_by_the_signal_itself() -> None:
    """A pool ends its workers by SIGTERM: they say nothing, and clean up nothing of their parent's."""
    with cancellable():
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_stopped_command_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert command(main)() == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM; the same command goes on from there\n"


def test_a_connection_that_breaks_is_no_closed_output(capfd: pytest.CaptureFixture[str]) -> None:
    """Both are BrokenPipeError; only who reads the output may have seen enough."""

    def main() -> int:
        ours, theirs = socket.socketpair()
        theirs.close()
        ours.sendall(b"x" * 10)
        return 0

    assert command(main)() == entry.AGAIN
    print("still there")
    assert capfd.readouterr() == ("still there\n", "[Errno 32] Broken pipe\n")


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    main = "lambda: [print('x' * 99) for _ in range(9999)]"
    code = f"import sys\nfrom megatron_af.entry import command\nsys.exit(command({main})())"
    head = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    done = subprocess.run([sys.executable, "-c", code], stdout=head.stdin, stderr=subprocess.PIPE, check=False)
    assert head.stdin is not None
    head.stdin.close()
    head.wait()
    assert done.returncode == 128 + signal.SIGPIPE and done.stderr == b""


BAD_FILES = {
    "binary.yaml": os.urandom(300),
    "empty.yaml": b"",
    "list.yaml": b"- a\n- b\n",
    "text.yaml": b"hello",
    "torn.yaml": b"name: x\ncurriculum: {one: {steps: [",
    "cycle.yaml": b"include: cycle.yaml\nname: x\n",
    "types.yaml": b"name: 3\nseed: many\nmodel: {lm: {layers: [1]}}\n",
    "object.yaml": b"name: !!python/object/apply:os.system [true]\n",
    "bare.yaml": b"name: x\n",
    "deep.yaml": b"name: " + b"[" * 2000,
    "odd.yaml": "name: \ud83d\udc16\nname: x\n\t- y".encode("utf-8", "surrogatepass"),
}
OVERRIDES = ([], ["=", "a"], ["stage=nothing"], ["model.lm.layers=-1"], ["seed=${oc.env:NOT_THERE}"])
COMMANDS = {
    "build_retrieval": ["index", "--config"],
    "convert_checkpoint": ["--from", "nowhere", "--to", "out", "--config"],
    "demo": ["--config"],
    "evaluate": ["--config"],
    "expand_captions": ["--config"],
    "filter_rows": ["--rows", "a", "--least", "0.1", "--output", "out.jsonl", "--config"],
    "mine_clips": ["cut", "--config"],
    "prepare_data": ["prepare", "--config"],
    "pretrain_af": ["--config"],
    "promote": ["register", "--config"],
    "run_curriculum": ["--config"],
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", COMMANDS)
def test_no_input_makes_a_command_end_in_a_traceback(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command, with files that are no configurations and with odd keys behind a good one."""
    for name, content in BAD_FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.yaml").mkdir()
    good = tmp_path / "good.yaml"
    good.write_text(f"name: x\noutput: {tmp_path}/runs\ndata: {{root: {tmp_path}}}\ntracking: {{enabled: false}}\n")
    cases = [[str(tmp_path / name)] for name in (*BAD_FILES, "folder.yaml", "not-there.yaml")]
    cases += [[str(good), *more] for more in OVERRIDES]
    import megatron_af.demo.run
    import megatron_af.release.commands  # noqa: F401  # once here, not in every child

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    for case in cases:
        code, said = ended(tool, [*COMMANDS[tool], *case], tmp_path / "stderr")
        assert "Traceback" not in said, (case, said)
        assert code in (1, 2) or (code == 0 and Path(case[0]).stem in ("good", "bare")), (case, code, said)
        assert said.strip() or code == 0, case


def ended(tool: str, arguments: list[str], told: Path) -> tuple[int, str]:
    """Exit code and stderr of a command, in a child of this process: what it imports is here already."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told.read_text(errors="replace")
    code = 99
    try:
        sys.stderr = told.open("w")
        sys.argv = [f"{tool}.py", *arguments]
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


FULL = """
import os, sys
from megatron_af.entry import command

@command
def main() -> int:
    print("a line for a log", flush="flush" in sys.argv)
    if "refused" in sys.argv:
        raise FileNotFoundError(2, "No such file or directory", "rows.jsonl")
    return 0

sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("late", 1, "standard output: No space left on device\n"),
        ("flush", 1, "[Errno 28] No space left on device\n"),
        ("refused", 2, "rows.jsonl: No such file or directory\n"),
    ],
)
@pytest.mark.parametrize("all_of_it", [False, True], ids=["output", "output and errors"])
def test_a_log_on_a_full_disk_is_told_of_where_that_can_be(how: str, code: int, told: str, all_of_it: bool) -> None:
    with Path("/dev/full").open("w") as full:
        errors = full if all_of_it else subprocess.PIPE
        done = subprocess.run(
            [sys.executable, "-c", FULL, how], stdout=full, stderr=errors, text=True, cwd=ROOT, check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )  # fmt: skip
    assert done.returncode == code and (done.stderr or told) == told


@pytest.mark.slow
def test_a_command_ends_without_looking_for_circles() -> None:
    program = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); import megatron_af.entry"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1000


IMPORTING = """
import gc
import sys
from megatron_af.entry import importing

before = gc.get_freeze_count()
with importing():
    with importing():
        made = [[] for _ in range(100_000)]
    assert not gc.isenabled() and gc.get_freeze_count() == before
assert gc.isenabled() and gc.get_freeze_count() > before + 100_000
try:
    with importing():
        import no_such_module
except ImportError:
    assert gc.isenabled()
sys.modules["torch"] = gc
frozen = gc.get_freeze_count()
with importing():
    assert gc.isenabled()
dropped = [[] for _ in range(1000)]
with importing():
    pass
assert gc.get_freeze_count() == frozen
print("well")
"""


@pytest.mark.slow
def test_what_is_imported_is_not_searched_for_circles_now_or_later() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "well\n", done.stderr


@pytest.mark.parametrize(
    "argument", ["http://user:canary@h", "--no-such=http://user:canary@h/v1", "temperature=http://h?key=canary"]
)
def test_no_argument_holds_a_password(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main() -> int:
        print(sys.argv)
        return 0

    monkeypatch.setattr(sys, "argv", ["tool", "--config", argument])
    assert main() == entry.NO_USE
    told = "".join(capsys.readouterr())
    assert "holds a password" in told
    assert "canary" not in told
    monkeypatch.setattr(sys, "argv", ["tool", "http://user@h:5000", "sqlite:///a"])
    assert main() == 0
