"""What the fuzz feeds: every parser of files from elsewhere, with examples of what it reads.

    PARSERS["recording"].read(folder, data)         # as tests/faults/fuzz.py calls it, in an empty folder

Of a folder of several files the input is JSON: names, and what stands in them. Answers and requests that come over the
network are in ``tests/faults/talkers.py``.
"""

import base64
import hashlib
import io
import json
import os
import pickle
import re
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import soundfile
import torch
from safetensors.torch import save
from torch.distributed.checkpoint.metadata import Metadata

from dali_pipes.waves import is_recording, read_mono, recording_seconds
from megatron_af.config import ImportConfig, LMConfig
from megatron_af.config.loading import read_config
from megatron_af.convert.clap_folder import ClapFolder
from megatron_af.convert.encoders import EncoderFile
from megatron_af.convert.keys import pickled_weights
from megatron_af.convert.language import LanguageFolder, read_part
from megatron_af.convert.released import ReleasedFolder
from megatron_af.convert.shards import INDEX, tensor_files
from megatron_af.data.rows import Manifest, RowError, parse_row
from megatron_af.data.shards import PreparedRows, longest_clips, record_batch, row_durations, write_index
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, read_record
from megatron_af.parallel.global_state import Placement
from megatron_af.retrieval.index import NeighbourIndex
from megatron_af.runs.digests import DIGEST_FILE, digest_files, names_of, record_digest, verify_digest
from megatron_af.runs.paths import LATEST, MANIFEST
from megatron_af.runs.records import RECORD, StageRecord
from megatron_af.runs.whole import settle
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.described_tensors import METADATA, only_tensors
from tests.faults.talkers import TALKERS, Parser
from tests.prepare.importing import run as import_rows
from tests.text.toy_tokenizer import toy_base

WAVE = (0.1 * np.sin(np.arange(1600) / 5)).astype(np.float32)
ROW = {"id": "a", "clips": [{"path": "a.wav", "duration": 0.1}], "questions": [{"prompt": "what?", "output": "rain"}]}
TURNS = [{"from": "human", "value": "<sound>\nwhat?"}, {"from": "gpt", "value": "rain"}]
CONFIG = b"name: x\nseed: 3\ncurriculum: {a: {steps: 3, blend: {b: 1.0}}}\ndata: {datasets: {b: {manifest: b.jsonl}}}\n"
LAUGHS = b"a0: &a0 [x, x]\n" + b"".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}]\n".encode() for i in range(16))
SIZES = {"hidden": 8, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 16, "vocab": 300, "max_positions": 64}
QWEN2 = {"model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 300, "tie_word_embeddings": True,
         "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "rope_theta": 1e6}  # fmt: skip
OPT = {"model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 8, "num_hidden_layers": 1, "ffn_dim": 16,
       "num_attention_heads": 2, "vocab_size": 300, "max_position_embeddings": 64}  # fmt: skip
CLAP = {"model_type": "clap", "audio_config": {"patch_embeds_hidden_size": 8, "depths": [1, 1], "enable_fusion": False,
        "num_attention_heads": [1, 2], "hidden_size": 16, "projection_dim": 8}}  # fmt: skip
HEARS = {"feature_size": 64, "sampling_rate": 48000, "hop_length": 480, "max_length_s": 10, "fft_window_size": 1024,
         "frequency_min": 50, "frequency_max": 14000, "truncation": "rand_trunc", "padding": "repeatpad"}  # fmt: skip
FACTORIES = {"flat": "Flat", "hnsw": "HNSW32", "ivf": "PCA4,IVF2_HNSW32,PQ4x4fs,RFlat",
             "ivf_pq": "IVF2,PQ4x4fs,Refine(SQ8)"}  # fmt: skip
"""What the kinds of ``retrieval/vector_index.py`` are made of, in small."""
TENSORS = {"model.embed_tokens.weight": torch.ones(300, 8)} | {
    f"model.layers.0.{name}.weight": torch.ones(rows, 8)
    for name, rows in {"self_attn.q_proj": 8, "self_attn.k_proj": 4, "self_attn.v_proj": 4, "mlp.gate_proj": 16,
                       "mlp.up_proj": 16}.items()
}  # fmt: skip


@cache
def _sound(kind: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, WAVE, 16_000, format=kind)
    return out.getvalue()


def _tar(*members: tuple[str, bytes, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


PLAIN_TAR = _tar(
    ("a.flac", tarfile.REGTYPE, _sound("FLAC")), ("a.txt", tarfile.REGTYPE, b"rain"),
    ("b.flac", tarfile.REGTYPE, _sound("FLAC")), ("b.json", tarfile.REGTYPE, b'{"text": "wind"}'),
)  # fmt: skip
EVIL_TAR = _tar(
    ("../a.flac", tarfile.REGTYPE, _sound("FLAC")), ("../a.txt", tarfile.REGTYPE, b"rain"),
    ("/etc/b.wav", tarfile.SYMTYPE, b""), ("c.wav", tarfile.LNKTYPE, b""), ("d.txt", tarfile.FIFOTYPE, b""),
)  # fmt: skip


def _written(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    """A parser that reads a file of this name in a folder."""

    def parse(folder: Path, data: bytes) -> None:
        (folder / name).write_bytes(data)
        read(folder)

    return parse


def _folder(files: dict[str, Any]) -> bytes:
    """The input of a parser of folders."""
    packed = {name: base64.b64encode(x).decode() if isinstance(x, bytes) else x for name, x in files.items()}
    return json.dumps(packed).encode()


def _unpacked(read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    """A parser that reads a folder of files: JSON as it stands, and what else there is in base64."""

    def parse(folder: Path, data: bytes) -> None:
        try:
            files = json.loads(data)
        except (ValueError, RecursionError):
            return
        for name, content in files.items() if isinstance(files, dict) else ():
            if not re.fullmatch(r"\w[\w.-]{0,100}", name):
                continue
            raw = json.dumps(content).encode()
            if isinstance(content, str):
                with suppress(ValueError):
                    raw = base64.b64decode(content)
            (folder / name).write_bytes(raw)
        read(folder)

    return parse


def _import(folder: Path, origin: ImportConfig) -> None:
    (folder / "audio").mkdir(exist_ok=True)
    (folder / "audio/a.wav").write_bytes(_sound("WAV"))
    import_rows(folder, origin)


def _rows(folder: Path) -> None:
    rows = Manifest(folder / "a.jsonl")
    for place in range(len(rows)):
        with suppress(RowError):
            list(map(DataRoot(str(folder)).local, [clip.path for clip in rows[place].clips]))


def _recording(folder: Path, data: bytes) -> None:
    is_recording(data)
    seconds = recording_seconds(data)
    read_mono(data, start=0.0, duration=min(seconds, 1.0))


def _index() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        rows = [parse_row(ROW | {"id": str(i), "captions": ["rain"], "meta": {"a": 1}}, "a row") for i in range(3)]
        write_index(Path(folder) / "index.arrow", [record_batch(rows, [1, 1, 1])])
        return (Path(folder) / "index.arrow").read_bytes()


def _prepared(folder: Path) -> None:
    rows = PreparedRows(folder / "index.arrow")
    for place in range(min(len(rows), 300)):
        rows[place]
    root = DataRoot(str(folder))
    longest_clips(root, ".")
    for _ in row_durations(rows):
        pass


@cache
def _searched(kind: str) -> bytes:
    """A file of faiss."""
    vector_PJ = np.random.default_rng(0).standard_normal((20, 4), np.float32)
    faiss.omp_set_num_threads(1)  # the fuzz forks, and OpenMP's threads are then missed and waited for
    index = faiss.index_factory(4, FACTORIES[kind], faiss.METRIC_L2)
    if not index.is_trained:
        cells = faiss.downcast_index(faiss.extract_index_ivf(index))
        cells.cp.min_points_per_centroid = cells.pq.cp.min_points_per_centroid = 1
        index.train(vector_PJ)
    index.add(vector_PJ)
    return faiss.serialize_index(index).tobytes()


def _neighbours(kind: str) -> bytes:
    out, letters = io.BytesIO(), np.array(list("abcdefghijklmnopqrst"), "S64")
    np.savez(out, row_N=np.arange(20), piece_N=np.arange(20), key_P=letters, audio_P=letters,
             recording_P=np.arange(20))  # fmt: skip
    files = {"catalogue.npz": out.getvalue(), "vectors.0.faiss": _searched(kind)}
    digests = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in files.items()}
    about = {"inputs": {}, "kind": kind, "left_out": {}, "files": digests}
    return _folder({"index.json": about, **files})


def _near(folder: Path) -> None:
    # Whoever means to do harm writes digests as well.
    with suppress(ValueError, OSError, LookupError, AttributeError, TypeError):
        about = json.loads((folder / "index.json").read_bytes())
        about["files"] |= digest_files(folder, [name for name in names_of(folder) if name in about["files"]])
        (folder / "index.json").write_text(json.dumps(about))
    index = NeighbourIndex.read(folder)
    for found in index.nearest(np.ones((1, 4), np.float32), 2, own=[set()])[0]:
        index.rows_of(found[0])
    index.recordings_of(["a"])


def _language(folder: Path) -> None:
    for family in ("qwen2", "opt"):
        with suppress(ValueError):
            LanguageFolder(folder, family)
    (folder / "config.json").stat()
    family = "opt" if b'"opt"' in (folder / "config.json").read_bytes() else "qwen2"
    held, lm = LanguageFolder(folder, family), LMConfig(family=family, **SIZES)
    held.check(held.lm_config)
    str(held.report())
    with suppress(ValueError):
        held.check(lm)
    for name, rows in (("self_attention.linear_qkv", 16), ("mlp.linear_fc1", 32)):
        with suppress(ForeignError):
            whole = Placement(name=f"lm.decoder.layers.0.{name}.weight", shape=torch.Size((rows, 8)), dim=0,
                              local_length=rows, halves=1 + (rows == 32))  # fmt: skip
            read_part(whole, lm, held.source)
    with suppress(ForeignError):
        held.mean_row(2)
    Tokenizer.load(folder)


@cache
def _checkpoints() -> dict[str, bytes]:
    """Files of a folder of two checkpoints."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for step in (1, 2):
            checkpoint = folder / f"step_0000000{step}"
            checkpoint.mkdir()
            (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": step}, "parts": {"lm": "."}}))
            record_digest(checkpoint)
        settle(folder, lambda line: None)
        (folder / LATEST).write_text("step_00000002")
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _in_newest(name: str) -> Callable[[Path, bytes], Any]:
    """A parser of two checkpoints of which one file of the newer one, or the pointer, is foreign."""

    def parse(folder: Path, data: bytes) -> None:
        for file, content in {**_checkpoints(), name: data}.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(content)
        settle(folder, lambda line: None)

    return parse


def _load_described(folder: Path) -> None:
    with only_tensors(folder):
        pass


def _pickled(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def _import_parser(name: str, examples: list[bytes], **origin: Any) -> Parser:
    return Parser(examples=examples, read=_written(name, lambda at: _import(at, ImportConfig(**origin))))


PARSERS: dict[str, Parser] = {
    "configuration": Parser(
        examples=[CONFIG, LAUGHS, b'{"name": "x", "data": {"root": "a"}, "curriculum": {"b": {"steps": 3}}}'],
        read=_written("run.yaml", lambda at: read_config(str(at / "run.yaml"), [])), anywhere=True,
    ),
    "rows": Parser(
        examples=[json.dumps(ROW).encode() + b"\n", json.dumps(ROW | {"captions": ["rain"], "spans": [
            {"start": 0, "end": 1, "captions": ["rain"], "negatives": []}], "meta": {"a": 1}}).encode() + b"\n"],
        read=_written("a.jsonl", _rows),
    ),
    "table": _import_parser(
        "t.csv", [b'audio,caption\na.wav,rain\na.wav,"wind, far"\n', b"audio\tcaption\na.wav\train\n"],
        format="csv", path="t.csv", audio="audio", columns={"audio": "audio", "caption": "caption"},
    ),
    "conversations": _import_parser(
        "t.json", [json.dumps([{"id": "s", "sound": "a.wav", "conversations": TURNS}]).encode()],
        format="conversations", path="t.json", audio="audio",
    ),
    "released manifest": _import_parser(
        "m.json", [json.dumps({"split": "a", "split_path": "audio", "flamingo_task": "Clotho-v2-AudioCaptioning",
                               "total_num": 1, "data": {"0": {"name": "a.wav", "prompt": "p", "output": "x"}}})
                   .encode()],
        format="audio_flamingo", path="m.json", audio="audio",
    ),
    "tar": _import_parser("0.tar", [PLAIN_TAR, EVIL_TAR], format="webdataset", path="*.tar"),
    "recording": Parser(
        examples=[_sound(kind) for kind in ("WAV", "FLAC", "OGG", "AIFF", "AU", "W64")], read=_recording
    ),
    "index of rows": Parser(examples=[_index()], read=_written("index.arrow", _prepared)),
    "index of neighbours": Parser(examples=[_neighbours(kind) for kind in FACTORIES], read=_unpacked(_near)),
    "weights": Parser(
        examples=[save({"a.weight": torch.ones(3), "b": torch.ones(2, 2)}), save({"a": torch.ones(3).to(torch.int8)})],
        read=_written("model.safetensors", tensor_files),
    ),
    "pickled weights": Parser(
        examples=[_pickled({"state_dict": {"audio_branch.a": torch.ones(2)}}), _pickled({"a": _Evil()}),
                  pickle.dumps(_Evil())],
        read=_written("a.pt", lambda at: EncoderFile(pickled_weights(at / "a.pt"))),
    ),
    "index of weights": Parser(
        examples=[json.dumps({"metadata": {}, "weight_map": {"a": "m-1.safetensors"}}).encode()],
        read=_written(INDEX, tensor_files),
    ),
    "folder of a language model": Parser(
        examples=[
            _folder({"config.json": QWEN2, "model.safetensors": save(TENSORS),
                     "tokenizer.json": json.loads(toy_base().to_str())}),
            _folder({"config.json": QWEN2 | {"quantization_config": {"quant_method": "awq"}},
                     "model.safetensors": save(TENSORS), "tokenizer_config.json": {"eos_token": {"content": "x"}}}),
            _folder({"config.json": OPT, INDEX: {"weight_map": dict.fromkeys(TENSORS, "m.safetensors")},
                     "m.safetensors": save(TENSORS), "merges.txt": b"#\n",
                     "vocab.json": {"<pad>": 1, "</s>": 2, "a": 0}}),
        ],
        read=_unpacked(_language),
    ),
    "folder of a CLAP": Parser(
        examples=[_folder({"config.json": CLAP, "preprocessor_config.json": HEARS,
                           "model.safetensors": save(TENSORS)})],
        read=_unpacked(ClapFolder),
    ),
    "folder of a release": Parser(
        examples=[_folder({"metadata.json": ["model_chunk_0"], "model_chunk_0.safetensors": save(TENSORS)})],
        read=_unpacked(lambda at: ReleasedFolder(at).keys),
    ),
    "description of tensors": Parser(
        examples=[pickle.dumps(Metadata(state_dict_metadata={})), pickle.dumps(_Evil())],
        read=_written(METADATA, _load_described),
    ),
    "checkpoint's manifest": Parser(
        examples=[json.dumps({"resume": {"step": 2}, "parts": {"lm": "."}}).encode()],
        read=_in_newest(f"step_00000002/{MANIFEST}"),
    ),
    "pointer to a checkpoint": Parser(examples=[b"step_00000002", b"../step_00000002"], read=_in_newest(LATEST)),
    "digests": Parser(
        examples=[b"sha256:" + b"0" * 64 + b"\n" + b"0" * 64 + b"  a\n"],
        read=_written(DIGEST_FILE, lambda at: ((at / "a").write_text("a"), verify_digest(at))),
    ),
    "stage's record": Parser(
        examples=[b'{"inputs": {"a": "b"}, "done": true}'],
        read=_written(RECORD, lambda at: read_record(StageRecord, at / RECORD)),
    ),
    "tokenizer": Parser(examples=[toy_base().to_str().encode()], read=_written("tokenizer.json", Tokenizer.load)),
    **TALKERS,
}  # fmt: skip
