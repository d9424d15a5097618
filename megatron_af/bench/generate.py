"""What a token of an answer costs, by length of the recording, batch and way of decoding.

    result = measure(Path(folder), progress)        # tools/bench.py generate

Three ways, which must compute the same: ``cached`` keeps keys and values of the text and of the audio; ``public``
keeps those of the text alone, as the public code does (``public_code.py``); ``rerun`` reads the whole text again.
Weights and audio tokens are random, prompts have ``PROMPT`` tokens; float32, processor seconds of one thread, the
median over tokens. In a long answer each token is decoded and ``PLACES`` of them are read again, since the cost of that
grows evenly with the text.

Shapes: S text positions, B rows, L audio tokens, D audio width, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from megatron_af.bench.learning import draw_in_place, open_gates
from megatron_af.bench.machine import clock, world
from megatron_af.config import Config, ParallelConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.parallel.device import current_device
from megatron_af.progress import Progress

MODELS = {"demo": "demo.yaml", "0.5B": "af2_0.5b.yaml"}
"""Name -> configuration whose language model and gated blocks are measured."""
WINDOWS = (3, 12, 30)
BATCHES = (1, 16)
PROMPT, NEW = 48, 8
LONG, PLACES = 256, 8
"""Tokens of the long answer, and how many of them are read again."""
SAME = 1e-3
"""Of the spread of logits, up to which two ways compute the same."""

type Timed = tuple[list[float], list[Tensor], Tensor]
"""Processor seconds of each token, the tokens [B, 1], and the logits [B, V] behind the last."""


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        ``cost``: milliseconds a token, by model, batch, windows and way (``public`` for a batch of one alone);
        ``long``: of a long answer at the fewest windows, by model and way; ``ratios``: what follows from them.
    """
    torch.set_num_threads(1)
    cost, long = {}, {}
    with world():
        for name, file in MODELS.items():
            decoding = Decoding(_config(file))
            cost[name] = _of_model(decoding, name, progress)
            long[name] = _long_answer(decoding)
    return {"cost": cost, "long": long, "ratios": ratios(cost, long), "prompt_tokens": PROMPT, "new_tokens": NEW}


def ratios(cost: dict[str, Any], long: dict[str, dict[str, float]]) -> dict[str, float]:
    """Growth from the fewest to the most windows, and what keeping keys and values saves."""
    few, most = str(min(WINDOWS)), str(max(WINDOWS))
    found = {}
    for name, batches in cost.items():
        alone, many = batches[str(BATCHES[0])], batches[str(BATCHES[-1])]
        found[f"{name}: {most} windows / {few}"] = alone[most]["cached"] / alone[few]["cached"]
        found[f"{name}: public code / cached, {most} windows"] = alone[most]["public"] / alone[most]["cached"]
        rows = BATCHES[-1] / BATCHES[0]
        found[f"{name}: tokens/s of {BATCHES[-1]} rows / 1"] = rows * alone[few]["cached"] / many[few]["cached"]
        found[f"{name}: rerun / cached, {LONG} tokens"] = long[name]["rerun"] / long[name]["cached"]
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    cost = Table("model", "rows", "windows", "cached", "public code", title="milliseconds a token (of each row)")
    for name, batches in result["cost"].items():
        for batch, by_windows in batches.items():
            for windows, ways in by_windows.items():
                public = f"{ways['public']:.2f}" if "public" in ways else ""
                cost.add_row(name, batch, windows, f"{ways['cached']:.2f}", public)
    long = Table("model", "way", "ms a token", title=f"an answer of {LONG} tokens, {WINDOWS[0]} windows")
    for name, ways in result["long"].items():
        for way, value in ways.items():
            long.add_row(name, way, f"{value:.2f}")
    found = Table("ratio", "measured")
    for name, value in result["ratios"].items():
        found.add_row(name, f"{value:.2f}")
    return [cost, long, found]


def _config(file: str) -> Config:
    config = load_config(CONFIGS / file, ["precision=fp32"])
    return replace(config, parallel=ParallelConfig())


def _of_model(decoding: "Decoding", name: str, progress: Progress) -> dict[str, Any]:
    cost: dict[str, Any] = {}
    for done, (batch, windows) in enumerate((batch, windows) for batch in BATCHES for windows in WINDOWS):
        progress.update(f"decode {name}", done, len(BATCHES) * len(WINDOWS), f"{batch} rows, {windows} windows")
        seconds, tokens, logits_BV = decoding.cached(batch, windows, NEW)
        ways = {"cached": 1000 * median(seconds)}
        if batch == 1:
            seconds, _, other_BV = decoding.public(windows, tokens)
            _same(logits_BV, other_BV)
            ways["public"] = 1000 * median(seconds)
        cost.setdefault(str(batch), {})[str(windows)] = ways
    progress.update(f"decode {name}", len(BATCHES) * len(WINDOWS), len(BATCHES) * len(WINDOWS))
    return cost


def _long_answer(decoding: "Decoding") -> dict[str, float]:
    seconds, tokens, logits_BV = decoding.cached(1, WINDOWS[0], LONG)
    again, other_BV = decoding.rerun(WINDOWS[0], tokens)
    _same(logits_BV, other_BV)
    return {"cached": 1000 * mean(seconds), "rerun": 1000 * mean(again)}


def _same(logits_BV: Tensor, other_BV: Tensor) -> None:
    """What is compared computes the same."""
    vocabulary = min(logits_BV.shape[1], other_BV.shape[1])
    apart = (logits_BV[:, :vocabulary] - other_BV[:, :vocabulary]).abs().max() / logits_BV[:, :vocabulary].std()
    if apart > SAME:
        raise RuntimeError(
            f"two ways of decoding gave logits {apart:.1e} of their spread apart: their costs cannot be compared"
        )


class Decoding:
    """A decoder with random weights and open gates, and processor seconds of each token that it makes.

    Args:
        in_place: as of :class:`Learning`.
    """

    def __init__(self, config: Config, *, in_place: bool = False) -> None:
        from megatron_af.decoder.lm import AudioLM
        from megatron_af.decoder.plain import only_answer
        from megatron_af.decoder.transformer_config import transformer_config
        from megatron_af.model import Vocabulary

        self._device = current_device()
        self._vocabulary = config.model.lm.vocab
        self._width = config.model.encoder.feature_dim
        self._per_window = config.model.encoder.tokens_per_window
        added = Vocabulary(first_added_id=self._vocabulary, num_added=4)
        self._lm = AudioLM(
            config,
            transformer_config(config, current_device()),
            first_added_id=added.first_added_id,
            added_tokens=added.num_added,
            pre_process=True,
            post_process=True,
            drawn=lambda name: not in_place,
        ).to(self._device.torch)
        open_gates(self._lm)
        if in_place:
            draw_in_place(self._lm.named_parameters())
        only_answer(self._lm)
        self._added = torch.randn(4, config.model.lm.hidden).to(self._device.torch) * 0.02
        self._of_public = config, added

    @cached_property
    def _public(self) -> Any:
        from megatron_af.bench.public_code import PublicCode  # only now: it needs transformers

        return PublicCode.of(self._lm, self._added, *self._of_public)

    @property
    def weight_bytes(self) -> int:
        """That every token reads."""
        return sum(weight.nbytes for weight in self._lm.parameters())

    @torch.inference_mode()
    def cached(self, batch: int, windows: int, new: int) -> Timed:
        from megatron_af.decoder.cache import DecoderCache, HeardAudio

        cache = DecoderCache(HeardAudio.of(self._keys(batch, windows), range(batch)))
        last_B = torch.full((batch,), PROMPT - 1)
        logits_BV = self._lm.extend(self._rows(self._prompt(batch)), self._added, cache, position_B=last_B)
        seconds, tokens, now = [], [], clock(self._device.torch)
        for _ in range(new):
            tokens.append(logits_BV[:, : self._vocabulary].argmax(-1, keepdim=True).cpu())
            newest = self._rows(tokens[-1])
            began = now()
            logits_BV = self._lm.extend(newest, self._added, cache, position_B=torch.zeros_like(last_B))
            logits_BV[0, 0].item()  # waits for the device
            seconds.append(now() - began)
        return seconds, tokens, logits_BV

    @torch.inference_mode()
    def public(self, windows: int, tokens: Sequence[Tensor]) -> Timed:
        """Of one row, which is told what to say."""
        logits_BV = self._public.begin(self._prompt(1), self._keys(1, windows).tokens_LBD)
        seconds = []
        for token_B1 in tokens:
            began = time.process_time()
            logits_BV = self._public.next(token_B1)
            seconds.append(time.process_time() - began)
        return seconds, list(tokens), logits_BV

    @torch.inference_mode()
    def rerun(self, windows: int, tokens: Sequence[Tensor]) -> tuple[list[float], Tensor]:
        """Processor seconds of some tokens of one row, and the logits behind the last."""
        keys, text_BS = self._keys(1, windows), torch.cat([self._prompt(1), *tokens], 1)
        seconds = []
        for place in range(1, PLACES + 1):
            length = PROMPT + len(tokens) * place // PLACES
            rows = self._rows(text_BS[:, :length])
            began = time.process_time()
            logits_BV = self._lm.logits(rows, keys, self._added, position_B=torch.full((1,), length - 1))
            seconds.append(time.process_time() - began)
        return seconds, logits_BV

    def _prompt(self, batch: int) -> Tensor:
        return torch.arange(batch * PROMPT).view(batch, PROMPT) % self._vocabulary

    def _rows(self, ids_BS: Tensor) -> Any:
        from megatron_af.data.batch import TextRows

        zeros_BS = torch.zeros(ids_BS.shape, dtype=torch.int32)
        return TextRows(
            ids_BS=ids_BS,
            labels_BS=torch.full_like(ids_BS, -100),
            segment_BS=zeros_BS,
            first_audio_BS=zeros_BS,
            last_audio_BS=zeros_BS,
            dataset_BS=zeros_BS,
            clips=tuple((row,) for row in range(len(ids_BS))),
        )

    def _keys(self, batch: int, windows: int) -> Any:
        from megatron_af.data.batch import AudioKeys

        tokens = windows * self._per_window
        generator = torch.Generator().manual_seed(0)
        return AudioKeys(
            tokens_LBD=torch.randn(tokens, batch, self._width, generator=generator).to(self._device.torch),
            audio_of_BL=torch.zeros(batch, tokens, dtype=torch.int32),
        )
