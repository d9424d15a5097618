"""What a server counts, in Prometheus' text form.

    counts = Counts(held=lambda: 3, waiting=lambda: 1)
    counts.answered(200)
    counts.text()
"""

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Counts:
    """Of one server: a registry of its own.

    Args:
        held: requests between their first byte and the last of their answer.
        waiting: those of them that wait for others to be answered.
    """

    def __init__(self, *, held: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.started = int(time.time())
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter("af_requests", "Requests by status.", ["status"], registry=registry)
        self.prompt_tokens = Counter("af_prompt_tokens", "Tokens of prompts that were answered.", registry=registry)
        self.new_tokens = Counter("af_new_tokens", "Tokens of answers.", registry=registry)
        self.audio_seconds = Counter("af_audio_seconds", "Seconds of recordings that were heard.", registry=registry)
        self.batch = Histogram(
            "af_batch_requests", "Requests answered together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.seconds = Histogram(
            "af_request_seconds",
            "From a request's first byte to its answer.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )
        Gauge("af_requests_held", "Requests that hold a place.", registry=registry).set_function(held)
        Gauge("af_requests_waiting", "Requests that wait to be answered.", registry=registry).set_function(waiting)

    def answered(self, status: int) -> None:
        self._requests.labels(str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
