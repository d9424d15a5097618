"""How long a stage takes on this machine as it is now: its encoder is run for a moment, the rest is a share of that.

    seconds = Pace.measure(config).seconds(config, "clap", rows=3_000)
"""

import time
from dataclasses import dataclass

import torch

from megatron_af.audio.encoder import encoder_of
from megatron_af.config import Config

WINDOWS, TRIES = 8, 4
START_SECONDS = 20.0
"""Until the first step of a stage, and until the first question of its evaluation."""
TEXT_SHARE = 1.3
"""A step with its text side, in passes of the encoder; where features are kept, in forward passes."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one process for a window."""

    forward: float
    trained: float
    """Forward and backward."""

    @classmethod
    def measure(cls, config: Config) -> "Pace":
        """Runs a fresh encoder of the configuration a few times; the quickest counts."""
        front = config.model.front_end
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng():
                encoder = encoder_of(config.model.encoder).build(front, pretraining=True).train()
            mel_WFM = torch.linspace(-80.0, 0.0, WINDOWS * front.window_frames * front.mel_bins).view(
                WINDOWS, front.window_frames, front.mel_bins
            )
            taken = []
            for _ in range(TRIES):
                began = time.perf_counter()
                features = encoder(mel_WFM)
                forward = time.perf_counter() - began
                features.square().mean().backward()
                taken.append((time.perf_counter() - began, forward))
        finally:
            torch.set_num_threads(threads)
        trained, forward = min(taken)
        return cls(forward=forward / WINDOWS, trained=trained / WINDOWS)

    def seconds(self, config: Config, stage: str, rows: int) -> float:
        """Of a stage of the written recipe with its evaluation; about."""
        settings, processes = config.curriculum[stage], config.launch.processes_per_node
        windows = settings.steps * settings.global_batch_samples * settings.max_windows / processes
        each = self.trained if settings.objective == "contrastive" else self.forward
        measured = 2 * rows * self.forward * settings.max_windows * bool(settings.evaluation) / processes
        return 2 * START_SECONDS + TEXT_SHARE * windows * each + measured
