"""Bytes from strangers: every parser of them reads them, or says in a sentence of ours what is wrong.

    python -m tests.faults.fuzz --inputs 10000 --seed 0 [--only recording]      # a table of counts

Inputs are whole examples with some bytes changed, cut out, doubled or put in, and now and then anything at all. What is
raised must be told by ``megatron_af.entry``: an exception of this project, or a file that the system refuses.
"""

import argparse
import io
import json
import pickle
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch.distributed.checkpoint.metadata import Metadata

from dali_pipes.waves import is_recording, read_mono, recording_seconds
from megatron_af.config import ImportConfig
from megatron_af.config.loading import read_config
from megatron_af.convert.shards import INDEX, tensor_files
from megatron_af.data.rows import Manifest
from megatron_af.entry import sentence
from megatron_af.foreign import read_record
from megatron_af.runs.digests import DIGEST_FILE, record_digest, verify_digest
from megatron_af.runs.paths import LATEST, MANIFEST
from megatron_af.runs.records import RECORD, StageRecord
from megatron_af.runs.whole import settle
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.described_tensors import METADATA, only_tensors
from tests.prepare.importing import run as import_rows
from tests.text.toy_tokenizer import toy_base

WAVE = (0.1 * np.sin(np.arange(1600) / 5)).astype(np.float32)
ROW = {"id": "a", "clips": [{"path": "a.wav", "duration": 0.1}], "questions": [{"prompt": "what?", "output": "rain"}]}
TURNS = [{"from": "human", "value": "<sound>\nwhat?"}, {"from": "gpt", "value": "rain"}]
CONFIG = b"name: x\nseed: 3\ncurriculum: {a: {steps: 3, blend: {b: 1.0}}}\ndata: {datasets: {b: {manifest: b.jsonl}}}\n"


def _sound(kind: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, WAVE, 16_000, format=kind)
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in {"a.flac": _sound("FLAC"), "a.txt": b"rain", "b.flac": _sound("FLAC")}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _written(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    """A parser that reads a file of this name in a folder."""

    def parse(folder: Path, data: bytes) -> None:
        (folder / name).write_bytes(data)
        read(folder)

    return parse


def _import(folder: Path, origin: ImportConfig) -> None:
    (folder / "audio").mkdir(exist_ok=True)
    (folder / "audio/a.wav").write_bytes(_sound("WAV"))
    import_rows(folder, origin)


def _recording(folder: Path, data: bytes) -> None:
    is_recording(data)
    seconds = recording_seconds(data)
    read_mono(data, start=0.0, duration=min(seconds, 1.0))


def _checkpoint(folder: Path) -> None:
    """A folder of two checkpoints, of which one file of the newer one is foreign."""
    for step in (1, 2):
        checkpoint = folder / f"step_0000000{step}"
        if not checkpoint.exists():
            checkpoint.mkdir()
            (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": step}, "parts": {"lm": "."}}))
            record_digest(checkpoint)
    settle(folder, lambda line: None)


def _in_newest(name: str) -> Callable[[Path, bytes], Any]:
    def parse(folder: Path, data: bytes) -> None:
        if not (folder / LATEST).exists():
            _checkpoint(folder)
        (folder / LATEST).write_text("step_00000002")
        (folder / name).write_bytes(data)
        _checkpoint(folder)

    return parse


def _load_described(folder: Path) -> None:
    with only_tensors(folder):
        pass


PARSERS: dict[str, tuple[list[bytes], Callable[[Path, bytes], Any]]] = {
    "configuration": ([CONFIG], _written("run.yaml", lambda at: read_config(str(at / "run.yaml"), []))),
    "rows": ([json.dumps(ROW).encode() + b"\n"], _written("a.jsonl", lambda at: list(Manifest(at / "a.jsonl")))),
    "table": (
        [b"audio,caption\na.wav,rain\na.wav,\"wind, far\"\n", b"audio\tcaption\na.wav\train\n"],
        _written("t.csv", lambda at: _import(at, ImportConfig(
            format="csv", path="t.csv", audio="audio", columns={"audio": "audio", "caption": "caption"}))),
    ),
    "conversations": (
        [json.dumps([{"id": "s", "sound": "a.wav", "conversations": TURNS}]).encode()],
        _written("t.json", lambda at: _import(at, ImportConfig(format="conversations", path="t.json", audio="audio"))),
    ),
    "released manifest": (
        [json.dumps({"split": "a", "split_path": "audio", "flamingo_task": "Clotho-v2-AudioCaptioning", "total_num": 1,
                     "data": {"0": {"name": "a.wav", "prompt": "p", "output": "rain"}}}).encode()],
        _written("m.json", lambda at: _import(at, ImportConfig(format="audio_flamingo", path="m.json", audio="audio"))),
    ),
    "tar": ([_tar()], _written("0.tar", lambda at: _import(at, ImportConfig(format="webdataset", path="*.tar")))),
    "recording": ([_sound(kind) for kind in ("WAV", "FLAC", "OGG", "AIFF", "AU", "W64")], _recording),
    "weights": (
        [save({"a.weight": torch.ones(3), "b": torch.ones(2, 2)})],
        _written("model.safetensors", tensor_files),
    ),
    "index of weights": (
        [json.dumps({"metadata": {}, "weight_map": {"a": "m-1.safetensors"}}).encode()], _written(INDEX, tensor_files)
    ),
    "description of tensors": ([pickle.dumps(Metadata(state_dict_metadata={}))], _written(METADATA, _load_described)),
    "checkpoint's manifest": (
        [json.dumps({"resume": {"step": 2}, "parts": {"lm": "."}}).encode()], _in_newest(f"step_00000002/{MANIFEST}")
    ),
    "pointer to a checkpoint": ([b"step_00000002", b"../step_00000002"], _in_newest(LATEST)),
    "digests": (
        [b"sha256:" + b"0" * 64 + b"\n" + b"0" * 64 + b"  a\n"],
        _written(DIGEST_FILE, lambda at: ((at / "a").write_text("a"), verify_digest(at))),
    ),
    "stage's record": (
        [b'{"inputs": {"a": "b"}, "done": true}'], _written(RECORD, lambda at: read_record(StageRecord, at / RECORD))
    ),
    "tokenizer": ([toy_base().to_str().encode()], _written("tokenizer.json", Tokenizer.load)),
}  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, examples: list[bytes]) -> bytes:
    """An example after up to six edits, or a few bytes of any kind."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 1, 2, 4, 16, 1000]))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) if data else b""
            case 1:
                data[at : at + length] = draw(st.binary(min_size=length, max_size=length)) if length < 1000 else b""
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case _:
                data[at:at] = draw(st.sampled_from(WORDS))
    return bytes(data)


WORDS = [b"\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"null", b"[", b"{", b"\"", b"-1", b"1e999", b"NaN", b"../",
         b"/etc/passwd", b"\n", b"\r", b"\xed\xa0\x80", b"!!python/object/apply:os.system [true]", b"9" * 400,
         b"${oc.env:HOME}"]  # fmt: skip


class Unanswered(AssertionError):
    """What a parser raised is none of our messages."""


@contextmanager
def answered(data: bytes) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if sentence(error) is None:
            raise Unanswered(f"{type(error).__name__}: {error} of {data[:300]!r}") from error


def run(name: str, inputs: int, start: int) -> float:
    """Feed a parser; seconds that it took.

    Raises:
        Unanswered: with the shortest input that hypothesis found for it.
    """
    examples, parse = PARSERS[name]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="megatron-af-fuzz-") as place:

        @seed(start)
        @settings(
            max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink], print_blob=False,
        )  # fmt: skip
        @given(edited(examples))
        def feed(data: bytes) -> None:
            folder = Path(place) / "x"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            with answered(data):
                parse(folder, data)
            assert list(Path(place).iterdir()) == [folder], "it wrote outside of its folder"

        feed()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *PARSERS])
    options = parser.parse_args()
    for name in [options.only] if options.only else PARSERS:
        try:
            seconds = run(name, options.inputs, options.seed)
            print(f"| {name} | {options.inputs} | {options.seed} | {seconds:.0f} s |", flush=True)
        except Exception as broken:
            print(f"| {name} | BROKEN | {str(broken)[:600]}", flush=True)


if __name__ == "__main__":
    main()
