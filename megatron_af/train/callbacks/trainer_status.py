"""Tells Kubeflow Trainer how far its TrainJob is: ``kubectl get trainjob NAME -o jsonpath={.status.trainerStatus}``.

Where Trainer's feature gate ``TrainJobStatus`` (alpha, 2.2) is on, it gives every pod of a job an address, a token and
its certificate by ``KUBEFLOW_TRAINER_SERVER_URL``, ``_TOKEN`` and ``_CA_CERT`` (both files). Elsewhere nothing happens.
"""

import http.client
import json
import math
import os
import queue
import ssl
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_af.foreign import read_text
from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

URL, TOKEN, CERTIFICATE = (f"KUBEFLOW_TRAINER_SERVER_{what}" for what in ("URL", "TOKEN", "CA_CERT"))
SECONDS = 10.0
"""Between two reports; Trainer asks for 5 at least."""
TIMEOUT_SECONDS = 5.0
METRICS = ("step", "loss", "tokens_per_second", "audio_seconds_per_second", "mfu")


class TrainerStatus(Callback):
    """On rank 0, posts progress in a thread of its own: a server that is slow or away costs training nothing."""

    def __init__(self) -> None:
        self._url = os.environ.get(URL, "")
        self._next = 0.0
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def on_start(self, trainer: "Trainer") -> None:
        if trainer.rank == 0 and self._url:
            self._thread = threading.Thread(target=self._send_all, daemon=True)
            self._thread.start()

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        step, steps = int(record["step"]), trainer.stage.steps
        if self._thread and (time.monotonic() >= self._next or step == steps):
            self._next = time.monotonic() + SECONDS
            self._waiting.put(status(record, steps))

    def on_end(self, trainer: "Trainer", reason: str) -> None:
        if self._thread:
            self._waiting.put(None)
            self._thread.join(2 * TIMEOUT_SECONDS)
            self._thread = None

    def _send_all(self) -> None:
        failed = ended = False
        while not ended:
            waiting = [self._waiting.get()]
            while not self._waiting.empty():
                waiting.append(self._waiting.get())
            ended = None in waiting
            newest = next((report for report in reversed(waiting) if report is not None), None)
            if newest is None:
                continue
            try:
                _post(self._url, newest)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if not failed:  # said once; the next report may arrive
                    print(f"Kubeflow Trainer takes no progress at {self._url} ({error}); training goes on", flush=True)
                failed = True


def status(record: Record, steps: int) -> dict[str, Any]:
    """A step's record in Trainer's words (its ``UpdateTrainJobStatusRequest``); what is not known yet is left out."""
    known = {name: value for name, value in record.items() if math.isfinite(value)}
    told: dict[str, Any] = {
        "progressPercentage": int(100 * record["step"] / steps),
        "metrics": [{"name": name, "value": f"{known[name]:.6g}"} for name in METRICS if name in known],
        "lastUpdatedTime": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if "eta_seconds" in known:
        told["estimatedRemainingSeconds"] = round(known["eta_seconds"])
    return {"trainerStatus": told}


def _post(url: str, report: dict[str, Any]) -> None:
    token = read_text(Path(os.environ[TOKEN])).strip()  # each time: it is renewed every hour
    request = urllib.request.Request(
        url,
        data=json.dumps(report).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    trusted = ssl.create_default_context(cafile=os.environ[CERTIFICATE])
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=trusted):
        pass
