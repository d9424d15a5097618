"""The data root: a folder or a store, never left, whose files appear whole."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_af.data import storage
from megatron_af.data.storage import DataRoot, StorageError, StoreAway


def test_the_root_is_never_left(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    root.write("a/b.bin", b"0123456789")
    assert root.read("a/b.bin", 2, 3) == b"234" and root.size("a/b.bin") == 10
    with pytest.raises(StorageError, match="ends at byte 10"):
        root.read("a/b.bin", 8, 5)
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(ValueError, match=r"inside data\.root"):
            root.read(path)


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_files_appear_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    root = DataRoot(str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}/data")
    root.write("a/b.bin", b"0123456789")
    with pytest.raises(RuntimeError), root.writing("a/c.bin") as file:
        file.write(b"half")
        raise RuntimeError
    assert not root.exists("a/c.bin") and root.exists("a/b.bin")
    assert (root.read("a/b.bin"), root.read("a/b.bin", 3, 4), root.size("a/b.bin")) == (b"0123456789", b"3456", 10)
    assert root.fetch("a/b.bin").read_bytes() == b"0123456789"
    with pytest.raises(StorageError):
        root.read("a/b.bin", 8, 5)
    with pytest.raises(FileNotFoundError):
        root.fetch("a/c.bin")
    assert root.names("a") == ["b.bin"] and root.names("nowhere") == []
    root.remove("a/b.bin")
    root.remove("a/b.bin")
    assert not root.exists("a/b.bin")
    if kind == "folder":
        (tmp_path / "a/.b.bin.killed.draft").write_bytes(b"half")
        root.sweep("a")
        assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_a_message_names_its_file_once(tmp_path: Path, kind: str) -> None:
    root = DataRoot(str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}/data")
    root.write("a/b.bin", b"0123456789")
    for ask in (root.size, root.read, root.digest, lambda path: root.read(path, 0, 3)):
        with pytest.raises(StorageError) as refused:
            ask("a/c.bin")
        assert str(refused.value) == f"{root}/a/c.bin does not exist"
    if kind == "folder":
        with pytest.raises(StorageError) as refused:
            root.read("a")
        assert str(refused.value) == f"{root}/a: Is a directory"


class Store:
    """Files below a folder over HTTP; until ``back`` it answers ``status``."""

    def __init__(self, folder: Path) -> None:
        store = self
        self.back, self.status, self.asked = 0.0, 503, 0
        self.clock: Any = time

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                store.asked += 1
                file = folder / self.path.lstrip("/")
                away = store.clock.monotonic() < store.back
                body = b"" if away or not file.is_file() else file.read_bytes()
                self.send_response(store.status if away else 200 if file.is_file() else 404)
                if part := self.headers.get("Range"):
                    begin, end = part.removeprefix("bytes=").split("-")
                    body = body[int(begin) : int(end) + 1 if end else None]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = DataRoot(f"http://127.0.0.1:{self.server.server_port}")
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def away(self, seconds: float, status: int = 503) -> None:
        self.back, self.status, self.asked = self.clock.monotonic() + seconds, status, 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    store = Store(tmp_path)
    yield store
    store.server.shutdown()


class Clock:
    """One that whoever sleeps puts on: nobody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.slow
def test_a_store_that_answers_503_for_a_minute_is_waited_for(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.clock = clock = Clock()
    monkeypatch.setattr(storage, "time", clock)
    assert store.root.read("a.bin", 2, 3) == b"234"
    store.away(60)
    assert store.root.read("a.bin") == b"0123456789" and 59 < clock.now < 90
    assert store.asked < 20
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "a.bin: 503" in told and "asked again for 180 s" in told


def test_one_that_stays_away_is_told_of_and_an_answer_is_an_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "AWAY_SECONDS", 0.3)
    monkeypatch.setattr(storage, "FIRST_WAIT_SECONDS", 0.05)
    store.away(100)
    for ask in (store.root.read, store.root.exists, store.root.size):
        with pytest.raises(StoreAway, match=r"a\.bin: 503.*, for 0 s"):
            ask("a.bin")
    assert store.asked > 6
    store.away(0.1)
    assert store.root.exists("a.bin") and store.root.read("a.bin", 0, 1) == b"0"
    for status in (401, 403):
        store.away(100, status)
        with pytest.raises(StorageError, match=str(status)):
            store.root.read("a.bin")
        assert store.asked == 1
    store.away(0)
    with pytest.raises(StorageError, match=r"b\.bin"):
        store.root.read("b.bin")
    assert not store.root.exists("b.bin")
    store.server.shutdown()
    store.server.server_close()
    for ask in (store.root.read, store.root.exists):
        with pytest.raises(StoreAway, match=r"[Cc]onnect"):
            ask("a.bin")
