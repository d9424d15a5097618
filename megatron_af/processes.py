"""Work that is shared by processes of one machine.

    with processes(8, "data.prepare.workers") as pool:
        done = pool.map(work, jobs)

They are started anew, not forked, so that they inherit no thread and no lock of this one; they end with it, however it
ends; and one that the system kills ends the work, where ``multiprocessing.Pool`` would wait for its answer for ever.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from megatron_af.entry import AGAIN


class ProcessLost(RuntimeError):
    """A process ended in the middle of its work."""

    exit_code = AGAIN


@contextmanager
def processes(count: int, key: str = "") -> Iterator[ProcessPoolExecutor]:
    """So many processes; ``key`` is what the user sets their number with.

    Raises:
        ProcessLost: one was killed, as the system does where memory runs out, or could not be started.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        yield pool
    except BaseException as error:  # who asks to stop has seconds: nothing that was begun or waits is of use now
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if not isinstance(error, BrokenProcessPool):
            raise
        fewer = f"; {key}, {count} here, says how many there are" if key else ""
        raise ProcessLost(
            f"one of {count} processes that share this work has ended: the system kills them where memory runs out"
            f" (`dmesg` or the pod's events tell){fewer}; the same command goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Where the one that shares the work out is killed, they would wait for more of it for ever."""

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
