"""Features written once and read back bit for bit, whatever happens to the writers."""

import errno
import os
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn

from megatron_af.audio import feature_cache
from megatron_af.audio.feature_cache import FeatureCache, encoder_digest
from tests.data.toy import FRONT_END


def cache(folder: Path, digest: str = "e", precision: str = "bf16") -> FeatureCache:
    return FeatureCache(folder, FRONT_END, digest, precision)


def test_stored_features_come_back_bit_for_bit(tmp_path: Path) -> None:
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        c = cache(tmp_path, precision=precision)
        keys = [c.key(f"d{i}", 0.0, 10.0, i + 1) for i in range(3)]
        features = [torch.randn(i + 1, 64, 8).to(dtype) for i in range(3)]
        assert c.lookup(keys) == [None] * 3
        c.store(keys, features)
        c.flush()
        for got, expected in zip(cache(tmp_path, precision=precision).lookup(keys), features, strict=True):
            assert got is not None and got.dtype == dtype and torch.equal(got, expected)
    c.store([""], [features[0]])
    c.flush()
    assert c.lookup([""]) == [None]


def test_the_key_follows_everything_the_features_follow_from(tmp_path: Path) -> None:
    base = cache(tmp_path)
    keys = {
        base.key("d", 0.0, 10.0, 1),
        base.key("other", 0.0, 10.0, 1),
        base.key("d", 1.0, 10.0, 1),
        base.key("d", 0.0, 9.0, 1),
        base.key("d", 0.0, 10.0, 2),
        cache(tmp_path, digest="new encoder").key("d", 0.0, 10.0, 1),
        cache(tmp_path, precision="fp32").key("d", 0.0, 10.0, 1),
        FeatureCache(tmp_path, replace(FRONT_END, max_hz=7000.0), "e", "bf16").key("d", 0.0, 10.0, 1),
    }
    assert len(keys) == 8
    assert base.key("d", 0.0, 10.0, 1) == cache(tmp_path).key("d", 0.0, 10.0, 1)


def test_damaged_files_count_as_missing_and_are_written_again(tmp_path: Path) -> None:
    c = cache(tmp_path)
    keys, features = [c.key(f"d{i}", 0, 1, 1) for i in range(4)], [torch.randn(1, 64, 8).bfloat16() for _ in range(4)]
    c.store(keys, features)
    c.flush()
    paths = [next(tmp_path.rglob(key)) for key in keys]
    paths[0].write_bytes(paths[0].read_bytes()[:-7])
    paths[1].write_bytes(b"")
    flipped = bytearray(paths[2].read_bytes())
    flipped[100] ^= 1
    paths[2].write_bytes(flipped)
    assert [f is None for f in c.lookup(keys)] == [True, True, True, False]
    c.store(keys, features)
    c.flush()
    assert all(f is not None and torch.equal(f, g) for f, g in zip(c.lookup(keys), features, strict=True))


def _write_all(folder: Path, count: int, forever: bool) -> None:
    torch.set_num_threads(1)
    c = cache(folder)
    while True:
        for i in range(count):
            c.store([c.key(f"d{i}", 0, 1, 1)], [torch.full((1, 64, 256), float(i), dtype=torch.bfloat16)])
        c.flush()
        if not forever:
            return
        for path in list(folder.glob("*/*/*")):  # make the next round write again
            path.unlink(missing_ok=True)


@pytest.mark.slow
def test_concurrent_and_killed_writers_never_leave_wrong_features(tmp_path: Path) -> None:
    context = get_context("fork")
    writers = [context.Process(target=_write_all, args=(tmp_path, 40, True)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reader = cache(tmp_path)
    keys = [reader.key(f"d{i}", 0, 1, 1) for i in range(40)]
    seen = 0
    try:
        deadline = time.monotonic() + 60
        while seen < 200 and time.monotonic() < deadline:
            for i, feature in enumerate(reader.lookup(keys)):
                if feature is not None:
                    seen += 1
                    assert feature.shape == (1, 64, 256) and (feature == i).all()
    finally:
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join(10)
    assert seen >= 200
    _write_all(tmp_path, 40, False)
    assert all(f is not None and (f == i).all() for i, f in enumerate(reader.lookup(keys)))


def test_temporary_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    cache(tmp_path)
    old, new = tmp_path / "parts" / "old", tmp_path / "parts" / "new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1.0, 1.0))
    cache(tmp_path)
    assert not old.exists() and new.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_of_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    c = cache(tmp_path / "c")
    keys = [c.key("d", start, 1, 1) for start in range(4)]
    feature = torch.ones(1, 2, 2)
    c.store(keys[:1], [feature])
    c.flush()
    full = Path("/dev/full").write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: full(data))
    for key in keys[1:]:
        c.store([key], [feature])
        c.flush()
    monkeypatch.undo()
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{tmp_path / 'c'}: No space left on device; features are computed again"]
    found = c.lookup(keys)
    assert found[0] is not None and found[1:] == [None] * 3 and not list((tmp_path / "c/parts").iterdir())


def test_a_folder_that_is_gone_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = cache(tmp_path / "c")
    (tmp_path / "c" / "parts").rmdir()
    c.store([c.key("d", 0, 1, 1)], [torch.zeros(1, 2, 2)])
    c.flush()
    assert "No such file or directory; features are computed again" in capsys.readouterr().err


def test_what_another_user_left_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary file that may not be removed, features that may not be read, and damaged ones of theirs."""
    c, feature = cache(tmp_path), torch.randn(1, 64, 8).bfloat16()
    keys = [c.key(f"d{i}", 0, 1, 1) for i in range(2)]
    c.store(keys, [feature] * 2)
    c.flush()
    closed, damaged = (next(tmp_path.rglob(key)) for key in keys)
    damaged.write_bytes(b"")
    (tmp_path / "parts/theirs").write_bytes(b"half")
    os.utime(tmp_path / "parts/theirs", (0, 0))

    def refused(path: Path, *_: object, **__: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    read = feature_cache.read_bytes
    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(feature_cache, "read_bytes", lambda path: refused(path) if path == closed else read(path))
    assert cache(tmp_path).lookup(keys) == [None, None]


def test_encoder_digest_follows_weights_and_buffers() -> None:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = encoder_digest(encoder)
    assert before == encoder_digest(encoder)
    encoder[1].running_mean[0] += 1  # type: ignore[index, operator]
    assert encoder_digest(encoder) != before
    assert encoder_digest(encoder.bfloat16()) != before
