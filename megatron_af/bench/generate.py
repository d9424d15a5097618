"""What a token of an answer costs, by length of the recording, batch and way of decoding.

    result = measure(Path(folder), progress)        # tools/bench.py generate

Three ways, which must give the same tokens: ``cached`` keeps keys and values of the text and of the audio; ``audio
anew`` keeps those of the text alone and projects the audio in every gated block for each token, as the public code
does (AF2 inference_HF_pretrained/src/xattn.py under transformers' generate); ``rerun`` reads the whole text again.
Weights and audio tokens are random, prompts have ``PROMPT`` tokens; one thread, float32.

Shapes: S text positions, B rows, L audio tokens, D audio width.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor

from megatron_af.config import Config, ParallelConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.parallel.device import current_device
from megatron_af.parallel.world import join_world
from megatron_af.progress import Progress

MODELS = {"demo": "demo.yaml", "0.5B": "af2_0.5b.yaml"}
"""Name -> configuration whose language model and gated blocks are measured."""
WINDOWS = (3, 12, 30)
BATCHES = (1, 16)
PROMPT, NEW = 48, 8
LONG = 256
"""Tokens of the long answer, of the smallest model alone: reading the text again grows with its square."""

type Timed = tuple[list[float], list[Tensor]]
"""Processor seconds of each token, and the tokens [B, 1]."""


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        ``cost``: milliseconds a token, by model, batch, windows and way; ``ratios``: what follows from them.
    """
    torch.set_num_threads(1)
    with _world():
        cost = {name: _of_model(_config(file), name, progress) for name, file in MODELS.items()}
        long = _long_answer(_config(MODELS["demo"]))
    return {"cost": cost, "long": long, "ratios": ratios(cost, long), "prompt_tokens": PROMPT, "new_tokens": NEW}


def ratios(cost: dict[str, Any], long: dict[str, float]) -> dict[str, float]:
    """Growth from the fewest to the most windows, and what keeping keys and values saves."""
    few, most = str(min(WINDOWS)), str(max(WINDOWS))
    found = {f"rerun / cached, {LONG} tokens": long["rerun"] / long["cached"]}
    for name, batches in cost.items():
        alone, many = batches[str(BATCHES[0])], batches[str(BATCHES[-1])]
        found[f"{name}: {most} windows / {few}"] = alone[most]["cached"] / alone[few]["cached"]
        found[f"{name}: audio anew / cached, {most} windows"] = alone[most]["audio anew"] / alone[most]["cached"]
        rows = BATCHES[-1] / BATCHES[0]
        found[f"{name}: tokens/s of {BATCHES[-1]} rows / 1"] = rows * alone[few]["cached"] / many[few]["cached"]
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    cost = Table("model", "rows", "windows", "cached", "audio anew", title="milliseconds a token (of each row)")
    for name, batches in result["cost"].items():
        for batch, by_windows in batches.items():
            for windows, ways in by_windows.items():
                cost.add_row(name, batch, windows, *(f"{ways[way]:.2f}" for way in ("cached", "audio anew")))
    long = Table("way", "ms a token", title=f"an answer of {LONG} tokens, demo, {WINDOWS[0]} windows")
    for way, value in result["long"].items():
        long.add_row(way, f"{value:.2f}")
    found = Table("ratio", "measured")
    for name, value in result["ratios"].items():
        found.add_row(name, f"{value:.2f}")
    return [cost, long, found]


def _config(file: str) -> Config:
    config = load_config(CONFIGS / file, ["precision=fp32"])
    return replace(config, parallel=ParallelConfig())


@contextmanager
def _world() -> Iterator[None]:
    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.parallel import groups

    groups.initialize(ParallelConfig(), 0)
    try:
        yield
    finally:
        groups.destroy()
        dist.destroy_process_group()


def _of_model(config: Config, name: str, progress: Progress) -> dict[str, Any]:
    cost: dict[str, Any] = {}
    decoding, done = _Decoding(config), 0
    for batch in BATCHES:
        for windows in WINDOWS:
            seconds, tokens = zip(
                *(decoding.cached(batch, windows, NEW, anew=anew) for anew in (False, True)), strict=True
            )
            _same(tokens)
            ways = dict(zip(("cached", "audio anew"), map(_milliseconds, seconds), strict=True))
            cost.setdefault(str(batch), {})[str(windows)] = ways
            progress.update(f"decode {name}", done := done + 1, len(BATCHES) * len(WINDOWS))
    return cost


def _long_answer(config: Config) -> dict[str, float]:
    decoding = _Decoding(config)
    cached, one = decoding.cached(1, WINDOWS[0], LONG, anew=False)
    rerun, other = decoding.rerun(1, WINDOWS[0], LONG)
    _same((one, other))
    return {"cached": 1000 * sum(cached) / LONG, "rerun": 1000 * sum(rerun) / LONG}


def _same(tokens: Sequence[list[Tensor]]) -> None:
    """What is compared computes the same."""
    for one, other in zip(*tokens, strict=True):
        if not torch.equal(one, other):
            raise RuntimeError("two ways of decoding gave different tokens: their costs cannot be compared")


def _milliseconds(seconds: list[float]) -> float:
    """Of a token: the median, since what disturbs a measurement disturbs few of them."""
    return 1000 * median(seconds)


class _Decoding:
    """A decoder with random weights, and processor seconds of each token that it makes."""

    def __init__(self, config: Config) -> None:
        from megatron_af.decoder.lm import AudioLM
        from megatron_af.decoder.transformer_config import transformer_config

        self._vocabulary = config.model.lm.vocab
        self._width = config.model.encoder.feature_dim
        self._per_window = config.model.encoder.tokens_per_window
        device = current_device()
        core = transformer_config(config, device)
        self._lm = AudioLM(
            config, core, first_added_id=self._vocabulary, added_tokens=4, pre_process=True, post_process=True
        ).eval()
        self._added = torch.randn(4, config.model.lm.hidden) * 0.02

    @torch.no_grad()
    def cached(self, batch: int, windows: int, new: int, *, anew: bool) -> Timed:
        from megatron_af.decoder.cache import DecoderCache, HeardAudio

        cache = DecoderCache(HeardAudio.of(self._keys(batch, windows), range(batch)))
        last_B = torch.full((batch,), PROMPT - 1)
        logits_BV = self._lm.extend(self._rows(batch, PROMPT), self._added, cache, position_B=last_B)
        seconds, tokens = [], []
        for _ in range(new):
            tokens.append(self._token(logits_BV))
            newest = replace(self._rows(batch, 1), ids_BS=tokens[-1])
            began = time.process_time()
            if anew:
                cache.forget_audio()
            logits_BV = self._lm.extend(newest, self._added, cache, position_B=torch.zeros_like(last_B))
            seconds.append(time.process_time() - began)
        return seconds, tokens

    @torch.no_grad()
    def rerun(self, batch: int, windows: int, new: int) -> Timed:
        rows, keys = self._rows(batch, PROMPT), self._keys(batch, windows)
        seconds, tokens = [], []
        for place in range(PROMPT, PROMPT + new):
            began = time.process_time()
            logits_BV = self._lm.logits(rows, keys, self._added, position_B=torch.full((batch,), place - 1))
            seconds.append(time.process_time() - began)
            tokens.append(self._token(logits_BV))
            rows = replace(self._rows(batch, place + 1), ids_BS=torch.cat([rows.ids_BS, tokens[-1]], 1))
        return seconds, tokens

    def _token(self, logits_BV: Tensor) -> Tensor:
        return logits_BV[:, : self._vocabulary].argmax(-1, keepdim=True)

    def _rows(self, batch: int, length: int) -> Any:
        from megatron_af.data.batch import TextRows

        zeros_BS = torch.zeros(batch, length, dtype=torch.int32)
        ids_BS = torch.arange(batch * length).view(batch, length) % self._vocabulary
        return TextRows(
            ids_BS=ids_BS,
            labels_BS=torch.full_like(ids_BS, -100),
            segment_BS=zeros_BS,
            first_audio_BS=zeros_BS,
            last_audio_BS=zeros_BS,
            dataset_BS=zeros_BS,
            clips=tuple((row,) for row in range(batch)),
        )

    def _keys(self, batch: int, windows: int) -> Any:
        from megatron_af.data.batch import AudioKeys

        tokens = windows * self._per_window
        generator = torch.Generator().manual_seed(0)
        return AudioKeys(
            tokens_LBD=torch.randn(tokens, batch, self._width, generator=generator),
            audio_of_BL=torch.zeros(batch, tokens, dtype=torch.int32),
        )
