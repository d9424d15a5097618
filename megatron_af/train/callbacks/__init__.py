"""What attaches to the training loop: the log line, rates, gates, skipped steps, checkpoints on the way, signals,
hangs."""

from megatron_af.train.callbacks.base import Callback, Record
from megatron_af.train.callbacks.hang import EndHangs
from megatron_af.train.callbacks.log_line import LogLine, format_line
from megatron_af.train.callbacks.stop_on_signal import StopOnSignal
from megatron_af.train.callbacks.trainer_status import TrainerStatus

__all__ = ["Callback", "EndHangs", "LogLine", "Record", "StopOnSignal", "TrainerStatus", "format_line"]
