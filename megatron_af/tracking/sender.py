"""The process that delivers a job's spool, so that a slow, absent or refusing server costs training nothing.

    python -m megatron_af.tracking.sender SPOOL SESSION LINGER SAMPLE   # the job starts it, on a pipe
    python -m megatron_af.tracking runs/demo                            # by hand: send all that waits

The pipe tells when the job is gone. A job that ended without a word (killed, out of memory) gets its run marked FAILED
instead of RUNNING for ever; delivery then goes on for LINGER seconds, and what is left waits in the spool.
"""

import os
import select
import sys
import time
import traceback
from pathlib import Path

from megatron_af.tracking.delivery import Delivery
from megatron_af.tracking.spool import Address, Spool, read_spool
from megatron_af.tracking.store import file_lock

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor  # isort: skip  (after store)
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor  # isort: skip
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor  # isort: skip
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor  # isort: skip

POLL_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0


class SystemMetrics:
    """Samples the host into the spool, by the names of MLflow's own monitor; steps are seconds since the run began."""

    def __init__(self, spool: Spool, every_seconds: float) -> None:
        self.spool, self.every_seconds = spool, every_seconds
        now = time.time()
        began = next((record["time"] / 1000 for record, _ in read_spool(spool.folder)), now)
        self._began = time.monotonic() - max(0.0, now - began)  # by a clock that nobody sets
        self._next = time.monotonic()
        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except Exception:  # whatever a host without NVIDIA's library or driver raises
            _say("no GPU to sample")

    def sample_if_due(self) -> None:
        if self.every_seconds <= 0 or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.every_seconds
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        self.spool.append("system", step=round(time.monotonic() - self._began), values=values)


def deliver_while_alive(folder: Path, session: str, linger_seconds: float, sample_seconds: float, pipe: int) -> None:
    """Send what the job writes until it is gone and everything is sent, or ``linger_seconds`` have passed since."""
    spool = Spool(folder, session)
    system = SystemMetrics(spool, sample_seconds)
    delivery = Delivery(folder)
    retry_seconds = next_try = 0.0
    deadline = float("inf")
    while time.monotonic() < deadline:
        if deadline < float("inf"):
            time.sleep(POLL_SECONDS)
        elif _gone(pipe, POLL_SECONDS):
            deadline = time.monotonic() + linger_seconds
            retry_seconds = next_try = 0.0
            spool.end_if_lost()
        else:
            system.sample_if_due()
        if time.monotonic() < next_try:
            continue
        try:
            delivery.send_pending()
        except Exception:  # any trouble of a server, a network or a store: the spool keeps what it did not take
            retry_seconds = min(LONGEST_RETRY_SECONDS, 2 * retry_seconds or 1.0)
            next_try = time.monotonic() + retry_seconds
            _say(f"trying again in {retry_seconds:.0f} s:\n{traceback.format_exc(limit=-2)}")
        else:
            retry_seconds = 0.0
            if deadline < float("inf"):
                return
        if Address.load(folder).session != session:
            return  # the job has started again, with a sender that waits for this one
    _say(f"gave up {linger_seconds:.0f} s after the job; the rest: python -m megatron_af.tracking {folder}")


def _gone(pipe: int, seconds: float) -> bool:
    """Wait up to ``seconds`` for the other end of the pipe to close."""
    readable, _, _ = select.select([pipe], [], [], seconds)
    return bool(readable) and not os.read(pipe, 1)


def _say(message: str) -> None:
    print(f"{time.strftime('%F %T')} {message}", flush=True)


def main() -> None:
    folder, session, linger_seconds, sample_seconds = sys.argv[1:]
    os.nice(10)
    with file_lock(Path(folder) / "sender.lock"):  # the sender of the job's last start may still be at it
        deliver_while_alive(
            Path(folder), session, float(linger_seconds), float(sample_seconds), pipe=sys.stdin.fileno()
        )


if __name__ == "__main__":
    main()
