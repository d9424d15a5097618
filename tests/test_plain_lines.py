"""What tells how far it is writes plain lines into a file, and no colours where ``NO_COLOR`` is set."""

import importlib
import os
import pty
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.entry_points import ODD, Ended, ask

pytestmark = pytest.mark.slow

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


@pytest.fixture
def folder(foundation_folder: Path, tmp_path: Path) -> Iterator[Path]:
    copy = tmp_path / "x"
    shutil.copytree(foundation_folder, copy, symlinks=True)
    yield copy
    shutil.rmtree(copy)


def on_a_terminal(module: str, arguments: list[str], folder: Path) -> tuple[Ended, str]:
    """How it ended, and what a terminal was sent."""
    ours, theirs = pty.openpty()
    sent = bytearray()

    def listen() -> None:
        while True:
            try:
                sent.extend(os.read(ours, 65536))
            except OSError:  # nobody has the other end open
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        ended = ask(module, arguments, folder, terminal=theirs)
    finally:
        os.close(theirs)
        listener.join(20)
        os.close(ours)
    return ended, sent.decode(errors="replace")


RUN = ["--config", "config.yaml"]
SHORT = ["name=fresh", "curriculum.stage.steps=3", "curriculum.clap.steps=3"]
PROGRESS = {
    "import": ("prepare_data", ["import", *RUN]),
    "prepare": ("prepare_data", ["prepare", *RUN]),
    "training": ("pretrain_af", [*RUN, "stage=stage", *SHORT]),
    "AF-CLAP": ("pretrain_clap", [*RUN, "stage=clap", *SHORT]),
    "index": ("build_retrieval", ["index", *RUN]),
    "answers": ("evaluate", [*RUN, "stage=stage", "evaluation.max_answer_tokens=2"]),
    "embeddings": ("evaluate", [*RUN, "stage=clap"]),
    "start": ("start", ["sounds", "--dry-run", "model.encoder.embed_dim=16", "model.encoder.heads=[2,2]"]),
}
"""What tells how far it is, and ends well on this folder."""


@pytest.mark.parametrize("name", PROGRESS)
def test_progress_in_a_file_is_plain_lines(name: str, folder: Path) -> None:
    module, arguments = PROGRESS[name]
    importlib.import_module(module)
    ended = ask(module, arguments, folder)
    assert ended.code == 0, ended.said
    assert ended.said and not ODD.search(ended.said), repr(ended.said)


@pytest.mark.parametrize("name", PROGRESS)
def test_a_terminal_gets_no_colours_where_none_are_wanted(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, arguments = PROGRESS[name]
    importlib.import_module(module)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    ended, sent = on_a_terminal(module, arguments, folder)
    assert ended.code == 0, sent
    assert sent and not COLOUR.search(sent), repr(sent[-2000:])


def test_a_terminal_gets_bars_and_colours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above look for is there otherwise."""
    module, arguments = PROGRESS["import"]
    importlib.import_module(module)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ended, sent = on_a_terminal(module, arguments, folder)
    assert ended.code == 0 and COLOUR.search(sent) and ODD.search(sent), repr(sent[-2000:])
