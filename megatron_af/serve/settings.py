"""Settings of the server of answers: ``configs/serving/*.yaml``.

    settings = load_settings("configs/serving/default.yaml", ["port=8080"])

Keys of clients are no setting: they stand in ``$AF_SERVING_KEYS``, one a line or separated by commas; without any the
server asks for none.
"""

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from megatron_af.config import ConfigError
from megatron_af.config.loading import read_values

KEYS = "AF_SERVING_KEYS"
MOST_PORT = 65_535

Precision = Literal["", "fp32", "bf16", "int8"]
"""How a model is held that answers: as it was trained, in float32 or bfloat16, or in bfloat16 with the language model's
linears in int8."""
PRECISIONS = tuple(filter(None, get_args(Precision)))


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """One server. What is beyond a limit is refused with one sentence, and nothing of it is kept."""

    host: str = "127.0.0.1"
    """Address to listen at; ``0.0.0.0`` for every one of the machine."""
    port: int = 8000
    name: str = ""
    """What clients call the model; empty: its name in the registry, of a folder the run's."""
    precision: Precision = ""
    """Of the weights: ``fp32``, ``bf16`` or ``int8``; empty: as trained."""
    audio_folder: str = ""
    """Folder whose files a request may name; empty: none, recordings come inside the request."""
    max_audio_seconds: float = 600.0
    """Of one recording, which has no more samples than so long a one of 48 kHz stereo."""
    max_request_bytes: int = 33_554_432
    """Of a request's body; base64 takes 4 bytes for 3."""
    max_prompt_characters: int = 32_768
    """Of all turns together; the stage's ``max_text_tokens`` holds as well."""
    max_new_tokens: int = 512
    """Most that a request may ask for."""
    default_new_tokens: int = 64
    """Of an answer whose request does not say."""
    max_choices: int = 8
    """Most answers to one request (``n``)."""
    batch_requests: int = 16
    """Answers that are written together, a token of each at a time."""
    waiting_requests: int = 64
    """Requests that may wait behind them; the next one gets 429. Memory is bounded by both, times a body."""
    upload_seconds: float = 30.0
    """Longest time that a client may take to send its body."""


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> ServingConfig:
    """Read a file of settings. Raises `ConfigError` with every problem found."""
    settings = read_values(ServingConfig, Path(path), overrides)
    least = {"port": 0, "waiting_requests": 0}
    problems = [
        f"{key} = {value}: write {least.get(key, 1)} or more"
        for key, value in vars(settings).items()
        if isinstance(value, int) and value < least.get(key, 1)
    ]
    problems += [
        f"{key} = {getattr(settings, key):g}: write more than 0"
        for key in ("max_audio_seconds", "upload_seconds")
        if not getattr(settings, key) > 0
    ]
    if settings.port > MOST_PORT:
        problems.append(f"port = {settings.port}: write {MOST_PORT} or less")
    if settings.default_new_tokens > settings.max_new_tokens:
        problems.append(
            f"default_new_tokens = {settings.default_new_tokens} is more than max_new_tokens = "
            f"{settings.max_new_tokens}: raise the one or lower the other"
        )
    if settings.audio_folder and not Path(settings.audio_folder).is_dir():
        problems.append(f"audio_folder = {settings.audio_folder}: not there; name a folder, or leave it empty")
    if problems:
        raise ConfigError(f"{path} cannot be used", problems)
    return settings


def check_address(settings: ServingConfig) -> None:
    """Whether a server could listen, asked before it loads its model for minutes.

    Raises:
        ConfigError: another program listens there, or the address is none of this machine.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: closed connections hold none
            tried.bind(address)
    except OSError as error:
        problem = f"host = {settings.host}, port = {settings.port}: {error.strerror}; name others"
        raise ConfigError("the server cannot listen", [problem]) from None


def keys() -> frozenset[str]:
    """The keys that clients may show; empty: none is asked for."""
    return frozenset(key for key in re.split(r"[,\s]+", os.environ.get(KEYS, "")) if key)
