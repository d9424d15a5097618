"""How every command ends: one sentence for what went wrong, and an exit code that says whether to try again.

    @command
    def main() -> int: ...

| code | |
|---:|---|
| 0 | done |
| 1 | failed; the same command may succeed later |
| 2 | cannot work before what the message names is changed |
| 70 | a fault of this program, which the message asks to report |
| 128 + n | ended by signal n; the same command goes on from there |

A command may have further codes of its own. SIGTERM and SIGINT (Ctrl-C) let it end what it started, and say one line;
a process under torchrun ends at once, unless it trains (``train/callbacks/stop_on_signal.py``). What the code of this
project raises on purpose carries its own message, which a node's first process tells where it is that of all ranks
(``on_all_ranks``); what the system refuses (a folder that may not be read, a disk that is full) is told by file and
reason; a process that loses its peers says so. Everything else is a fault: its traceback goes to a file, or, of a
process under torchrun, to that one's log.
"""

import atexit
import contextlib
import errno
import gc
import os
import re
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from opcode import opmap
from pathlib import Path
from types import TracebackType

AGAIN, NO_USE, FAULT = 1, 2, 70
PATIENCE_SECONDS = 60
"""For a node's first process to say why it ends."""
SEEN_SECONDS = 5
"""For the launcher to see the peer's end, which says why, before that of who lost it: a process closes its connections
some time before it is gone."""
_HOUSE = ("megatron_af", "dali_pipes", "af_pipelines", "tools", "__main__")
_PASSES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""What a disk or a machine may get over."""
LOST_A_PEER = "lost a peer"
"""What a process says that ends because another one has: never the cause of a job's end."""
_LOST_PEERS = {
    "RuntimeError": r"^\[\S*gloo/transport/\S+\] (.*?)(?:\. This is|\. GLHF|$)",  # not what begins with "[enforce fail"
    "DistBackendError": r"(remote process exited[^.\n]*|communicator was aborted[^.\n]*)",
    "DistNetworkError": r"(.*)",
    "DistStoreError": r"(.*)",
}
"""How torch's errors say that another process of the job is gone: gloo, NCCL, the store in which peers meet."""


class Cancelled(BaseException):
    """Someone asked the command to stop. Like KeyboardInterrupt, it passes handlers of errors by."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        """What a shell reports for a process that a signal ended."""


_heeding = False
_asked: "Cancelled | None" = None
"""How this process was asked to stop."""


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT raises `Cancelled`, so that every ``finally`` stops its own.

    Those that follow change nothing: whoever was asked to stop ends when what it started has ended.
    """
    global _heeding, _asked
    own = os.getpid()

    def cancel(number: int, _frame: object) -> None:
        if os.getpid() != own:  # forked, and not meant to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        global _asked
        for later in (signal.SIGTERM, signal.SIGINT):
            signal.signal(later, lambda *_: None)
        _asked = Cancelled(number)
        raise _asked

    def again(lost: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised in a callback, such as an import's: then ask once more, outside of it."""
        if not isinstance(lost.exc_value, Cancelled):
            hook(lost)
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, cancel)
        threading.Timer(0.01, os.kill, (own, lost.exc_value.exit_code - 128)).start()

    # Only the main thread may set handlers; inside another `cancellable` they are set.
    if _heeding or threading.current_thread() is not threading.main_thread():
        yield
        return
    _heeding, _asked = True, None
    before = {number: signal.signal(number, cancel) for number in (signal.SIGTERM, signal.SIGINT)}
    hook, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    finally:
        _heeding, sys.unraisablehook = False, hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside, modules are imported without a search for circles among what they make.

    All of it stays, and searching it again and again is an eighth of what torch and megatron-core take to be imported;
    what is there afterwards is never searched again, in training neither. A process that has torch already, and may
    have dropped a model since, has nothing to gain.
    """
    if not gc.isenabled() or "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def command[**Arguments](main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """``main``, but that it returns the exit code of what it raises, having told it."""

    @wraps(main)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> int:
        _open_standard_streams()
        try:
            return _ended(lambda: _said(main, *arguments, **named))
        finally:
            for output in (sys.stdout, sys.stderr):
                try:
                    output.flush()
                except (OSError, ValueError):  # or Python's own end would try again, and make an exit code of it
                    with contextlib.suppress(OSError, ValueError):
                        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())

    return run


def _open_standard_streams() -> None:
    """Whoever was started without one of the three (``>&-``) reads and writes nothing there. Left closed, the first
    file that is opened would get its number, and what libraries print."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(nothing, number == nothing)
            setattr(sys, name, os.fdopen(nothing, mode))


def _stopped(stop: Cancelled) -> int:
    _tell(f"{stop}; the same command goes on from there")
    return stop.exit_code


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk takes no message, and the exit code says it too
        print(message, file=sys.stderr, flush=True)


def _said[**Arguments](main: Callable[Arguments, int], *arguments: Arguments.args, **named: Arguments.kwargs) -> int:
    """``main``, and what it printed is where it was printed to; no argument may hold a password, which messages of any
    parser quote."""
    if any(":/" in argument for argument in sys.argv[1:]):
        from megatron_af.config.addresses import refuse_secrets  # only now: a command answers at once

        refuse_secrets("the command line", sys.argv[1:])
    code = main(*arguments, **named)
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise
    return code


def _ended(main: Callable[[], int]) -> int:
    try:
        if "LOCAL_RANK" in os.environ and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # it may wait for its peers where Python hears nothing
            return main()
        with cancellable():
            return main()
    except Cancelled as stop:
        return _stopped(stop)
    except Exception as error:
        if _asked is not None:  # in the middle of a library that made another error of it
            return _stopped(_asked)
        if isinstance(error, BrokenPipeError) and _output_is_gone():  # whoever read it has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        if (told := sentence(error)) is None:
            return _fault(error)
        message, code = told
        if (code == NO_USE or getattr(error, "on_all_ranks", False)) and os.environ.get("LOCAL_RANK", "0") != "0":
            _wait_to_be_ended(PATIENCE_SECONDS)
        _tell(message)
        if _lost_peer(error) and "LOCAL_RANK" in os.environ:
            _wait_to_be_ended(SEEN_SECONDS)
        return code


def _wait_to_be_ended(seconds: float) -> None:
    """By the launcher, which ends the others as soon as it saw one end; or after so many seconds by itself."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training has left a handler that lets it go on
    time.sleep(seconds)


def sentence(error: BaseException) -> tuple[str, int] | None:
    """What to tell of an error, and the exit code; None where it is a fault of this program."""
    if type(error).__module__.partition(".")[0] in _HOUSE:
        return str(error), getattr(error, "exit_code", NO_USE)
    if lost := _lost_peer(error):
        return f"process {os.environ['RANK']} {LOST_A_PEER} ({lost}); whichever ended first says why", AGAIN
    if isinstance(error, OSError):
        passes = error.errno in _PASSES or isinstance(error, TimeoutError | ConnectionError)
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return what, AGAIN if passes else NO_USE
    if isinstance(error, ValueError) and _raised_here(error):
        return str(error), NO_USE
    if isinstance(error, ImportError):
        return _missing_package(error)
    return None


def _lost_peer(error: BaseException) -> str:
    """What broke a collective where a peer has ended, which is no fault of this process; else nothing."""
    if "RANK" not in os.environ or not (pattern := _LOST_PEERS.get(type(error).__name__)):
        return ""
    found = re.search(pattern, str(error).partition("\n")[0])
    return found[1] if found else ""


def _missing_package(error: ImportError) -> tuple[str, int] | None:
    """Of an address's kind (fsspec's ``s3://``, a database's driver) a library learns only here that it lacks one."""
    package = (error.name or "").partition(".")[0]
    if package in _HOUSE or (package and not isinstance(error, ModuleNotFoundError)):
        return None  # a name that is not in a module
    said = f"the module {package} is missing" if package else str(error).splitlines()[0]
    return f"{said}: install the package that has it, and try again", NO_USE


def _raised_here(error: BaseException) -> bool:
    """Whether a ``raise`` of ours made it, not something that we called: of what is written in C, such as ``int``, no
    frame says that it did."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    if last is None or str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0] not in _HOUSE:
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] == opmap["RAISE_VARARGS"]


def _fault(error: Exception) -> int:
    if "RANK" in os.environ:
        raise error
    with tempfile.NamedTemporaryFile("w", prefix="megatron-af-", suffix=".traceback", delete=False) as file:
        traceback.print_exception(error, file=file)
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name != "entry.py"]
    place = f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    print(f"a fault of Megatron-AF: {said}{place}; please report it with {file.name}", file=sys.stderr)
    return FAULT


def _output_is_gone() -> bool:
    """Whether nobody reads this process's output any more: a pipe may also have broken to a server or a peer."""
    waiting = select.poll()
    waiting.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0))


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a command's modules are still being imported; anything else as ever."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by SIGINT", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _told
# The interpreter ends by looking for circles among all objects, several times: more than a second where torch and
# megatron-core are loaded, for memory that the system takes back anyway.
atexit.register(gc.freeze)
