"""What attaches to the training loop: the log line, rates, gates, skipped steps, checkpoints on the way, signals."""

from megatron_af.train.callbacks.base import Callback, Record
from megatron_af.train.callbacks.log_line import LogLine, duration, format_line
from megatron_af.train.callbacks.stop_on_signal import StopOnSignal

__all__ = ["Callback", "LogLine", "Record", "StopOnSignal", "duration", "format_line"]
