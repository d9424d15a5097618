"""A process that dies between two changes of files, one place after the other.

    for died in deaths(partial(import_dataset, config, "a", silent())):     # at its first change, its second, …
        ...                                                                 # look at what it left

Each is a fork that counts what it opens to write, renames, links and removes, as Python's audit hooks tell of it, and
kills itself at the change whose turn it is: before the others, and after a file was opened, which is empty then. The
last one lives to its end.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

CHANGES = ("open", "os.rename", "os.symlink", "os.remove")
WRITES = os.O_WRONLY | os.O_RDWR


def deaths(work: Callable[[], object], most: int = 200) -> Iterator[int]:
    """The number of each change that it died at; raises where it ends otherwise than by that, or at its end."""
    for turn in range(1, most):
        if lives(work, turn):
            return
        yield turn
    raise AssertionError(f"makes more than {most} changes")


def lives(work: Callable[[], object], turn: int = 0) -> bool:
    """Whether a fork comes to its end, which dies at the change that has this number."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of threads, which are idle
        child = os.fork()
    if not child:
        _kill_at(turn)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"ended with {code} where it should die at change {turn}"
    return not code


def _kill_at(turn: int) -> None:
    made = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal made
        if event not in CHANGES or (event == "open" and not _writes(*arguments)):
            return
        made += 1
        if made == turn:
            if event == "open":
                with suppress(OSError):  # a file without a name, in a folder
                    os.open(arguments[0], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def _writes(path: object, _: object, flags: int) -> bool:
    """Not of a file's descriptor, and not of a device."""
    return bool(flags & WRITES) and isinstance(path, str) and not path.startswith("/dev/")
