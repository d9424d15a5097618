"""Progress and the one error that matters, out of logs as torchrun really writes them."""

import pytest

from megatron_af.pipeline.logs import Progress, last_error, read_progress
from megatron_af.train.callbacks.log_line import format_line

TORCHRUN = """\
W1122 11:00:33.539000 12676 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 12695 closing signal
E1122 11:00:33.573000 12676 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) local_rank: 1
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
tools/pretrain_af.py FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-22_11:00:33
  exitcode  : -15 (pid: 12695)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 3 (local_rank: 1)
============================================================
"""
PEER = (
    "[rank0]: Traceback (most recent call last):\n[rank0]:     dist.barrier()\n"
    "[rank0]: RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:23469. GLHF!\n"
)


def test_progress() -> None:
    line = "step 120/5000 2.4% | loss 1.31 | grad 0.4 | lr 1e-4 | tok/s 812 | eta 1:02:11"
    progress = read_progress(line)
    assert progress == Progress(120, 5000, 1.31, "1:02:11", 812.0)
    assert str(progress) == "step 120/5000, loss 1.31, 812 tok/s, eta 1:02:11"
    assert read_progress("[rank 0] step 3 / 10") == Progress(3, 10)
    assert read_progress("step 3/10 | loss n/a") == Progress(3, 10)
    assert read_progress("stepping back") is None
    record = {"step": 120.0, "loss": 1.5, "tokens_per_second": 12_345.6, "eta_seconds": 65.0}
    assert read_progress(format_line(record, 5_000)) == Progress(120, 5000, 1.5, "1:05", 12_346.0)
    assert read_progress(format_line({"step": 1.0}, 5_000)) == Progress(1, 5000), "what is not known yet is left out"


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (PEER + "[rank3]: Traceback (most recent call last):\n[rank3]:   File 'x'\n"
         "[rank3]: ValueError: loss is not finite\n" + TORCHRUN, "ValueError: loss is not finite"),
        ("step 1/4 | loss 1\nconfiguration cannot run: 2 problems\n  - a\n  - b\n" + PEER + TORCHRUN,
         "configuration cannot run: 2 problems\n  - a\n  - b"),
        ("torch.OutOfMemoryError: CUDA out of memory.\nTried to allocate 2 GiB\n\nmore\n",
         "torch.OutOfMemoryError: CUDA out of memory.\nTried to allocate 2 GiB"),
        ("step 1/4 | loss 1\n" + PEER,
         "RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:23469. GLHF!"),
        ("│ lm │ 0 │ 82,496 │\nstage align: what trains\nstep 3/6 | loss 1\n" + PEER,
         "RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:23469. GLHF!"),
        ("step 1/4 | loss 1\nprocess 0 lost a peer (closed)\nexpected data, got none\nprocess 2 lost a peer (closed)\n",
         "expected data, got none"),
        ("step 1/4 | loss 1\nprocess 0 lost a peer (closed); x\n" + TORCHRUN, "process 0 lost a peer (closed); x"),
        ("KeyError\n", "KeyError"),
        ("step 1/4 | loss 1\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_last_error(log: str, error: str) -> None:
    assert last_error(log.splitlines()) == error


def test_last_error_is_kept_short() -> None:
    assert len(last_error(["ValueError: " + "x" * 10_000])) == 600
