"""What the data plane costs, beside the reference's path and the least that the work can cost.

    result = measure(Path(folder))      # tools/bench.py data

The stream: 44.1 kHz stereo FLAC, 60% of the clips under 10 s, 25% of 10 to 30 s, 15% of 30 to 300 s, in batches of
eight rows, windows up to 5 minutes. Measured is processor time of one thread per second of useful audio:

reference: AF2's path restated (data/data.py, src/factory.py): soundfile in float64, both channels resampled (librosa's
    default is soxr HQ; its own overhead is left out) and the first kept, every row padded to the longest of its batch,
    and for every window, padding included, a mel front end built anew.
unprepared: the same files through the stream's tolerant loader.
prepared: the shards that ``prepare`` makes of them, through the stream.
floor: libsndfile decoding those shards' FLAC, and one FFT mel, batched over the frames of each window.

Besides: padding with packing, beside what the reference pads on the same stream, and what an index of ten million rows
costs a process that opens it and reads rows at random.
"""

import io
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import tokenizers
import torch
from numpy.typing import NDArray
from rich.table import Table
from tokenizers import decoders, models, pre_tokenizers

from megatron_af.config import (
    Config,
    DataConfig,
    DatasetConfig,
    FrontEndConfig,
    ModelConfig,
    PrepareConfig,
    StageConfig,
)
from megatron_af.data.answer_texts import AnswerTexts
from megatron_af.data.batch import StepBatch, TextBatch
from megatron_af.data.rows import Clip, Question, Row, to_json
from megatron_af.data.shards import BATCH_ROWS, open_rows, record_batch, write_index
from megatron_af.data.storage import DataRoot
from megatron_af.data.stream import Stream
from megatron_af.files import write
from megatron_af.parallel.device import Device
from megatron_af.prepare.sharding import prepare
from megatron_af.progress import Progress
from megatron_af.text.tokenizer import Tokenizer

RATE = 44_100
BATCH = 8
MAX_WINDOWS = 30
SECONDS = [
    *np.linspace(2.0, 9.8, 24).tolist(),
    *np.linspace(10.5, 29.5, 10).tolist(),
    *np.geomspace(32.0, 300.0, 6).tolist(),
]
"""Of the clips: 60%, 25% and 15% of forty."""
TARGETS = {"prepared / reference": 0.25, "unprepared / reference": 2 / 3, "prepared / floor": 1.5}
PADDING_TARGETS = {"windows": 0.10, "text": 0.15}
INDEX_ROWS = 10_000_000
INDEX_TARGETS = {"open, seconds": 2.0, "resident, MB": 200.0}
_READ_INDEX = """
import json, random, sys, time
from pathlib import Path
import psutil
from megatron_af.data.shards import PreparedRows
before, began = psutil.Process().memory_info().rss, time.perf_counter()
rows = PreparedRows(Path(sys.argv[1]))
opened = time.perf_counter() - began
for _ in range(3000):
    rows[random.randrange(len(rows))]
resident = (psutil.Process().memory_info().rss - before) / 1e6
print(json.dumps({"open, seconds": opened, "resident, MB": resident, "rows": len(rows)}))
"""


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """Builds the stream below ``folder`` (5 GB at most) and measures; some minutes of one core.

    Returns:
        ``cost`` (milliseconds of processor time per second of audio), ``ratios`` with ``targets``, ``padding`` (ours
        and the reference's parts of windows and text positions), ``index``, ``audio_seconds``, ``clips``.
    """
    torch.set_num_threads(1)
    rows = _write_sources(folder)
    config = _config(folder)
    prepare(config, "bench", progress)
    recordings = replace(config, data=replace(config.data, datasets={"bench": DatasetConfig(manifest="bench.jsonl")}))
    seconds = sum(row.clips[0].duration for row in rows)
    files = [folder / row.clips[0].path for row in rows]
    root = DataRoot(str(folder))
    shards = [row.clips[0] for row in open_rows(root, "prepared")]
    streams = {"unprepared": _Epoch(recordings, len(rows)), "prepared": _Epoch(config, len(rows))}
    paths: dict[str, Callable[[], object]] = {
        "reference": lambda: [_reference_batch(files[i : i + BATCH]) for i in range(0, len(files), BATCH)],
        "unprepared": streams["unprepared"].run,
        "prepared": streams["prepared"].run,
        "floor": lambda: _floor([root.read(c.path, c.offset, c.length) for c in shards], config.model.front_end),
    }
    cost = {}
    for number, (name, path) in enumerate(paths.items(), 1):
        cost[name] = _processor_seconds(path) * 1000 / seconds
        progress.update("paths", number, len(paths), name)
    for stream in streams.values():
        stream.close()
    ratios = {name: cost[name.split(" / ")[0]] / cost[name.split(" / ")[1]] for name in TARGETS}
    return {
        "clips": len(rows),
        "audio_seconds": seconds,
        "cost": cost,
        "ratios": ratios,
        "targets": TARGETS,
        "padding": _padding(config, len(rows)),
        "padding_targets": PADDING_TARGETS,
        "index": _index(folder, open_rows(root, "prepared")[:]),
        "index_targets": INDEX_TARGETS,
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    cost = Table(
        "path", "ms CPU per second of audio", title=f"{result['clips']} clips, {result['audio_seconds']:.0f} s"
    )
    for name, value in result["cost"].items():
        cost.add_row(name, f"{value:.3f}")
    ratios = Table("ratio", "measured", "at most", "")
    for name, value in result["ratios"].items():
        limit = result["targets"][name]
        ratios.add_row(name, f"{value:.2f}", f"{limit:.2f}", "holds" if value <= limit else "MISSED")
    padding = Table("padding", "ours", "reference", "at most", "")
    for name, (ours, reference) in result["padding"].items():
        limit = result["padding_targets"][name]
        verdict = "holds" if ours <= limit else "MISSED"
        padding.add_row(name, f"{ours:.1%}", f"{reference:.1%}", f"{limit:.0%}", verdict)
    index = Table("index", "measured", "at most", "", title=f"{result['index']['rows']:,} rows")
    for name, limit in result["index_targets"].items():
        value = result["index"][name]
        index.add_row(name, f"{value:.3g}", f"{limit:.3g}", "holds" if value <= limit else "MISSED")
    return [cost, ratios, padding, index]


class _Epoch:
    """One pass over the stream's rows, made in the calling thread."""

    def __init__(self, config: Config, rows: int) -> None:
        stage = config.curriculum["bench"]
        device = Device(torch=torch.device("cpu"))
        texts = AnswerTexts(config, stage, Tokenizer.load(config.data.tokenizer))
        self._stream = Stream(config, stage, texts, dp_rank=0, dp_size=1, mp_rank=0, mp_size=1, device=device)
        self._steps = rows // stage.global_batch_samples
        self._stream.batch(self._steps - 1)  # pipelines are built by the first batches
        self._stream.pause()

    def run(self) -> list[StepBatch[TextBatch]]:
        return [self._stream.make(step) for step in range(self._steps)]

    def close(self) -> None:
        self._stream.close()


def _processor_seconds(work: Callable[[], object]) -> float:
    """The better of two runs: what disturbs a measurement only adds to it."""
    times = []
    for _ in range(2):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def _padding(config: Config, rows: int) -> dict[str, tuple[float, float]]:
    """Parts of encoded windows and of text positions that are padding, with packing and as the reference pads."""
    stage = replace(
        config.curriculum["bench"], pack_tokens=1024, global_batch_samples=min(32, rows), micro_batch_samples=1
    )
    epoch = _Epoch(replace(config, curriculum={"bench": stage}), rows)
    batches = epoch.run()
    epoch.close()
    positions = sum(text.ids_BS.numel() for batch in batches for text in batch.text.rows)
    windows = sum(len(batch.audio.mel_WFM) for batch in batches if batch.audio.mel_WFM is not None)
    heard = sum(sum(batch.audio.clip_windows) for batch in batches)
    plain = _Epoch(config, rows)
    lengths = [[(int((s >= 0).sum())) for text in b.text.rows for s in text.segment_BS] for b in plain.run()]
    counts = [[b.audio.clip_windows[c] for text in b.text.rows for ids in text.clips for c in ids] for b in plain.run()]
    plain.close()

    def padded(batches: Sequence[Sequence[int]]) -> float:
        return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)

    return {
        "windows": (1 - heard / windows, padded(counts)),
        "text": (1 - sum(b.text.num_tokens for b in batches) / positions, padded(lengths)),
    }


def _index(folder: Path, rows: Sequence[Row]) -> dict[str, float]:
    """A long index of rows like these, opened by a process of its own."""
    repeated = [rows[i % len(rows)] for i in range(BATCH_ROWS)]
    batch = record_batch(repeated, [1] * BATCH_ROWS)
    path = folder / "long.arrow"
    write_index(path, itertools.repeat(batch, INDEX_ROWS // BATCH_ROWS))
    command = [sys.executable, "-c", _READ_INDEX, str(path)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    path.unlink()
    return found


def _write_sources(folder: Path) -> list[Row]:
    rng, words = np.random.default_rng(0), random.Random(0)
    rows = []
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    order = list(range(len(SECONDS)))
    words.shuffle(order)
    for number in order:
        path, frames = f"clips/{number}.flac", round(SECONDS[number] * RATE)
        shared = np.cumsum(rng.standard_normal(frames)) * 0.002  # falling spectrum, as recordings have
        stereo = np.stack([shared, shared], 1) + 0.01 * rng.standard_normal((frames, 2))
        stereo -= stereo.mean(0)
        soundfile.write(folder / path, (0.7 * stereo / np.abs(stereo).max()).astype(np.float32), RATE)
        questions = tuple(
            Question(prompt="what " + "is heard " * words.randint(1, 12), output="a sound " * words.randint(1, 8))
            for _ in range(2)
        )
        clip = Clip(path=path, duration=frames / RATE)
        rows.append(Row(id=str(number), clips=(clip,), questions=questions))
    write(folder / "bench.jsonl", "".join(to_json(row) + "\n" for row in rows))
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return rows


def _config(folder: Path) -> Config:
    data = DataConfig(
        root=str(folder),
        tokenizer=str(folder / "tokenizer.json"),
        datasets={"bench": DatasetConfig(manifest="prepared", source="bench.jsonl")},
        prepare=PrepareConfig(workers=1),
    )
    stage = StageConfig(
        blend={"bench": 1.0}, max_windows=MAX_WINDOWS, global_batch_samples=BATCH, micro_batch_samples=BATCH
    )
    return Config(
        name="bench",
        precision="fp32",
        output=str(folder / "runs"),
        model=ModelConfig(),
        data=data,
        curriculum={"bench": stage},
        stage="bench",
    )


def _floor(streams: Sequence[bytes], front_end: FrontEndConfig) -> list[torch.Tensor]:
    window, filters = torch.hann_window(front_end.fft_size), _mel_filters(front_end)
    mels = []
    for data in streams:
        wave_T, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        windows = front_end.num_windows(len(wave_T), MAX_WINDOWS)
        wave_T = np.pad(wave_T, (0, windows * front_end.window_samples - len(wave_T)))
        wave_WT = torch.from_numpy(wave_T).view(windows, front_end.window_samples)
        mels += [_mel(wave_T[None], front_end, window, filters) for wave_T in wave_WT]  # a window fits the cache
    return mels


def _reference_batch(files: Sequence[Path]) -> list[torch.Tensor]:
    front_end = FrontEndConfig()
    rows = [_reference_row(file, front_end) for file in files]
    longest = max(len(row) for row in rows)
    padded = torch.stack([torch.cat([row, torch.zeros(longest - len(row), row.shape[1])]) for row in rows])
    mels = []
    for row_WT in padded:
        for wave_T in row_WT:
            window, filters = torch.hann_window(front_end.fft_size), _mel_filters(front_end)
            pcm = (wave_T.clamp(-1, 1) * 32767.0).to(torch.int16)  # the encoder rounds a second time
            mel_FM = _mel((pcm / 32767.0).float()[None], front_end, window, filters)[0]
            mels.append(torch.stack([mel_FM] * 4))
    return mels


def _reference_row(file: Path, front_end: FrontEndConfig) -> torch.Tensor:
    with soundfile.SoundFile(file) as sound:
        frames = int(MAX_WINDOWS * front_end.window_seconds * sound.samplerate)
        stereo: NDArray[np.float64] = sound.read(min(frames, sound.frames))
        wave = soxr.resample(stereo, sound.samplerate, front_end.sample_rate, quality="HQ")[:, 0]
    wave = wave / max(abs(wave.max()), abs(wave.min()))
    windows = front_end.num_windows(len(wave), MAX_WINDOWS)
    wave = np.append(wave, np.zeros(max(0, windows * front_end.window_samples - len(wave))))
    pcm = (np.clip(wave, -1.0, 1.0) * 32767.0).astype(np.int16)
    flat = torch.from_numpy((pcm / 32767.0).astype(np.float32))[: windows * front_end.window_samples]
    return flat.view(windows, front_end.window_samples)


def _mel(wave_WT: torch.Tensor, front_end: FrontEndConfig, window: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    spectrum = torch.stft(wave_WT, front_end.fft_size, front_end.hop_samples, window=window, return_complex=True)
    power_WFB = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)
    return 10 * torch.log10((power_WFB @ filters).clamp(min=1e-10))


def _mel_filters(front_end: FrontEndConfig) -> torch.Tensor:
    """HTK triangles [bins, M], as torchaudio's ``melscale_fbanks`` builds them."""
    low, high = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (front_end.min_hz, front_end.max_hz))
    mels = torch.linspace(float(low), float(high), front_end.mel_bins + 2)
    points = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    bins = torch.linspace(0, front_end.sample_rate // 2, front_end.fft_size // 2 + 1)
    slopes = points[None, :] - bins[:, None]
    steps = points[1:] - points[:-1]
    return torch.clamp(torch.minimum(-slopes[:, :-2] / steps[:-1], slopes[:, 2:] / steps[1:]), min=0)
