"""Encoder outputs of clips, computed once and shared by all ranks and runs.

    cache = FeatureCache(folder, front_end, encoder_digest(encoder), precision="bf16")
    hits = cache.lookup(keys)                   # features [W, L, D] or None, per key
    cache.store(missing_keys, features)         # written in the background

A file per clip, named by the digest of everything that its content follows from: the recording, the piece of it,
its windows, the front end, the encoder's weights, the precision. So a changed encoder never meets old features.
Files appear by rename, complete or not at all: of concurrent writers the first one's stays, a killed one leaves at
most a temporary file. A damaged file fails its checksum and counts as missing. ``features.py`` alone uses it.

Features are kept in the precision of the run (bf16, or float32 in a float32 run): a value read back must be the
one that was computed, bit for bit, or a resumed run would drift from an uninterrupted one. What is computed may hang
on how many windows the encoder is given at once, and that on what the cache has by then: float32 on a CPU has the same
bits for 1 to 16 windows, in bf16 features differ by up to 0.06 (largest value 4.4).

W windows, L tokens of a window, D feature dim.
"""

import hashlib
import json
import struct
import sys
import time
import uuid
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_af.config import FrontEndConfig
from megatron_af.foreign import read_bytes

_HEADER = struct.Struct("<4sIIIII")
"""Magic, W, L, D, bytes of an element, CRC-32 of the elements."""
_MAGIC = b"AFF1"
_STALE_SECONDS = 24 * 3600.0
_BACKLOG = 64
"""Stores that may wait for the disk before `store` waits for them."""


class FeatureCache:
    """Content-addressed features of one encoder under ``folder``."""

    def __init__(self, folder: Path, front_end: FrontEndConfig, encoder_digest: str, precision: str) -> None:
        self._folder = folder
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._spec = json.dumps(
            {"front_end": asdict(front_end), "encoder": encoder_digest, "precision": precision}, sort_keys=True
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="feature-cache")
        self._pending: list[Future[None]] = []
        self._refused = False
        self._parts = folder / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)
        _remove_stale(self._parts)

    def key(self, audio_digest: str, start: float, duration: float, windows: int) -> str:
        """Name of the features of one piece of one recording."""
        piece = json.dumps([self._spec, audio_digest, start, duration, windows])
        return hashlib.sha256(piece.encode()).hexdigest()

    def lookup(self, keys: Sequence[str]) -> list[Tensor | None]:
        """Features [W, L, D] on the CPU, or None where there are none."""
        return [self._read(self._path(key)) if key else None for key in keys]

    def store(self, keys: Sequence[str], features: Sequence[Tensor]) -> None:
        """Keeps features [W, L, D] of each key; an empty key is not kept. Returns before they are on disk.

        A disk that takes no more (full, read-only, gone) is told of once; from then on this process keeps nothing, and
        what is not there is computed.
        """
        while self._pending and (self._pending[0].done() or len(self._pending) >= _BACKLOG):
            self._pending.pop(0).result()
        if self._refused:
            return
        for key, feature_WLD in zip(keys, features, strict=True):
            if key:
                data = feature_WLD.detach().to(device="cpu", dtype=self._dtype, copy=True).contiguous()
                self._pending.append(self._writer.submit(self._write, self._path(key), data))

    def flush(self) -> None:
        """Waits until everything stored is on disk."""
        while self._pending:
            self._pending.pop(0).result()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key[2:4] / key

    def _read(self, path: Path) -> Tensor | None:
        try:
            data = bytearray(read_bytes(path))
        except OSError:  # there is none, or it may not be read
            return None
        body = memoryview(data)[_HEADER.size :]
        if len(data) >= _HEADER.size:
            magic, windows, tokens, dim, size, crc = _HEADER.unpack_from(data)
            whole = magic == _MAGIC and len(body) == windows * tokens * dim * size
            if whole and size == self._dtype.itemsize and zlib.crc32(body) == crc:
                return torch.frombuffer(body, dtype=self._dtype).view(windows, tokens, dim)
        with suppress(OSError):  # where nothing can be removed, it is computed each time
            path.unlink()  # after a power cut a renamed file may lack its content
        return None

    def _write(self, path: Path, feature_WLD: Tensor) -> None:
        if self._refused or path.exists():
            return
        body = feature_WLD.view(torch.uint8).numpy().tobytes()
        header = _HEADER.pack(_MAGIC, *feature_WLD.shape, feature_WLD.element_size(), zlib.crc32(body))
        part = self._parts / f"{path.name}.{uuid.uuid4().hex}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(header + body)
            part.replace(path)
        except OSError as error:
            self._refused = True
            why = error.strerror or error
            print(f"{self._folder}: {why}; features are computed again", file=sys.stderr, flush=True)
            with suppress(OSError):
                part.unlink(missing_ok=True)


def encoder_digest(encoder: nn.Module) -> str:
    """SHA-256 over the names, types and values of an encoder's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _remove_stale(folder: Path) -> None:
    """Temporary files of processes that died long ago."""
    for part in folder.iterdir():
        try:
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()
        except OSError:  # gone already, or another user's
            continue
