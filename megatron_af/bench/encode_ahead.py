"""Audio that is encoded ahead of the pipeline's schedule, beside audio that the first stage encodes and sends along.

    result = measure(Path(folder), progress)        # tools/bench.py encode-ahead

The other way is how multimodal models are commonly cut into stages: encoder and transformation layers run on the first
one, micro-batch by micro-batch, every hidden state travels with the audio tokens behind it, and so does its gradient.
Both must give the same loss and gradients before any is timed. A step costs what its busiest rank computes, in
processor seconds of one thread, float32: no step takes less where each rank has a processor of its own, and it can be
measured however many ranks share one. Schedules wait besides, the longer the less equal their stages are.

Shapes: S text positions, L audio tokens of a clip, B rows, W windows, F mel frames, M mel bins, T tokens of a
micro-batch, D audio width = H hidden.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor, nn

from megatron_af.bench.learning import ADDED, answer_rows, configuration, mel, open_gates
from megatron_af.bench.same import Computed, check_same, without_corners
from megatron_af.config import Config, ParallelConfig
from megatron_af.parallel.device import current_device
from megatron_af.parallel.ranks import run_distributed
from megatron_af.progress import Progress

STAGES = (2, 4)
WINDOWS = (3, 12, 30)
"""Of each sample's clip."""
MICRO_BATCHES, TOKENS, ROUNDS = 4, 160, 3
WIDTH, LAYERS = 256, 24
TIMEOUT_SECONDS = 1_800


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        ``rows``: of each number of stages and windows what the busiest rank computes in ``ahead`` and ``along``,
        seconds; ``times``, how often the first is faster; and ``audio``, the audio side's part of the whole work.
    """
    rows: list[dict[str, Any]] = []
    for stages in STAGES:
        progress.update("encode-ahead", len(rows), len(STAGES) * len(WINDOWS), f"{stages} stages")
        by_rank = run_distributed(compared, stages, settings(stages), WINDOWS, timeout=TIMEOUT_SECONDS)
        rows += [{"stages": stages} | busiest(found) for found in zip(*by_rank, strict=True)]
    return {"rows": rows}


def settings(stages: int, width: int = WIDTH, layers: int = LAYERS) -> Config:
    """Encoder, transformation layers and gated blocks learn, as in the second stage of Audio Flamingo 2's curriculum; a
    gated block stands before every third layer."""
    base = configuration(width)
    model = replace(
        base.model,
        encoder=replace(base.model.encoder, drop_path=0.0),  # drawn once a call, and calls are not the same
        lm=replace(base.model.lm, hidden=width, layers=layers),
        cross_attention=replace(base.model.cross_attention, interval=3),
    )
    stage = replace(base.curriculum["step"], trainable=("encoder.*", "transform.*", "lm.*.xattn.*"))
    return replace(base, model=model, parallel=ParallelConfig(pipeline=stages), curriculum={"step": stage})


def busiest(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row out of what each rank took."""
    seconds = {way: max(rank["seconds"][way] for rank in found) for way in ("ahead", "along")}
    return {
        "windows": found[0]["windows"],
        **seconds,
        "times": seconds["along"] / seconds["ahead"],
        "audio": found[0]["audio"],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    columns = ("pipeline stages", "windows", "audio's part", "encoded ahead, s", "sent along, s", "times faster")
    table = Table(*columns, title="what the busiest rank computes in a step", title_justify="left")
    for row in result["rows"]:
        took = (f"{row[way]:.2f}" for way in ("ahead", "along", "times"))
        table.add_row(str(row["stages"]), str(row["windows"]), f"{row['audio']:.0%}", *took)
    return [table]


def compared(rank: int, world_size: int, config: Config, windows: Sequence[int]) -> list[dict[str, Any]]:
    """What this rank took, after both ways gave the same loss and gradients."""
    from megatron_af.parallel import groups

    torch.set_num_threads(1)
    found = []
    stage = _Stage(config, groups.initialize(config.parallel, 0), rank)
    for number in windows:
        step = _Step(config, number, rank)
        with without_corners():
            check_same(stage.ahead(step), stage.along(step))
        seconds: dict[str, list[float]] = {"ahead": [], "along": []}
        for _ in range(ROUNDS):
            for way, took in seconds.items():
                began = time.process_time()
                getattr(stage, way)(step)
                took.append(time.process_time() - began)
        medians = {way: median(took) for way, took in seconds.items()}
        found.append({"windows": number, "seconds": medians, "audio": audio_part(config, step)})
    return found


class _Step:
    """A step's micro-batches of one sample each."""

    def __init__(self, config: Config, windows: int, rank: int) -> None:
        from megatron_af.data.batch import StepAudio, StepBatch, TextBatch

        self.windows = windows
        self.mel = [mel(config, windows, seed=clip) for clip in range(MICRO_BATCHES)]
        draw = torch.Generator().manual_seed(windows)
        ids = [torch.randint(config.model.lm.vocab - ADDED, (TOKENS,), generator=draw) for _ in range(MICRO_BATCHES)]
        rows = [replace(answer_rows([[0]], [one]), clips=((clip,),)) for clip, one in enumerate(ids)]
        stages = config.parallel.pipeline
        owners = tuple(tuple(range(owner, MICRO_BATCHES, stages)) for owner in range(stages))
        audio = StepAudio(
            clip_windows=(windows,) * MICRO_BATCHES,
            owners=owners,
            mel_WFM=torch.cat([self.mel[clip] for clip in owners[rank]]),
            seconds=10.0 * windows * MICRO_BATCHES,
        )
        text = TextBatch(rows=tuple(rows), num_tokens=TOKENS * MICRO_BATCHES)
        self.batch = StepBatch(audio=audio, text=text, sample_ids=("",) * MICRO_BATCHES)


class _Stage:
    """This rank's part of one model, which both ways train."""

    def __init__(self, config: Config, groups: Any, rank: int) -> None:
        from megatron_af.model import Vocabulary, build
        from megatron_af.train.objectives.answer_learner import AnswerLearner
        from megatron_af.train.trainable import select

        device = current_device()
        vocabulary = Vocabulary(first_added_id=config.model.lm.vocab - ADDED, num_added=4)
        self.model = build(config, vocabulary, device)
        open_gates(self.model)
        select(self.model.named_parameters(), config.curriculum["step"])
        self._learner = AnswerLearner(config, config.curriculum["step"], self.model, groups, device.torch)
        self._first, self._per_window = rank == 0, config.model.encoder.tokens_per_window

    def ahead(self, step: _Step) -> Computed:
        loss = self._learner.forward_backward(step.batch)["loss"]
        return Computed(loss, {name: gradient.clone() for name, gradient in self._gradients()})

    def along(self, step: _Step) -> Computed:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        from megatron_af.audio.encode_ahead import key_layout
        from megatron_af.data.batch import IGNORED

        (chunk,) = self.model.chunks
        for _, gradient in self._gradients():
            gradient.zero_()
        text, hooks = step.batch.text, chunk.config.finalize_model_grads_func
        length, keys = text.rows[0].ids_BS.shape[1], step.windows * self._per_window
        places_BL, audio_of_BL = key_layout([(0,)], (step.windows,), {0: 0}, self._per_window)
        stage = SentAlong(chunk, self.model.front, length)
        total = torch.zeros(1, dtype=torch.float64)

        def forward(clips: Iterator[int], stage: SentAlong) -> tuple[Tensor, Any]:
            clip = next(clips)
            made = step.mel[clip] if self._first else None
            output = stage(text.rows[clip], made, step.windows, places_BL.t(), audio_of_BL)
            return output, partial(_summed, total)

        chunk.config.finalize_model_grads_func = None
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(range(MICRO_BATCHES)),
            model=stage,
            num_microbatches=MICRO_BATCHES,
            seq_length=length + keys,
            micro_batch_size=1,
            forward_only=False,
        )
        chunk.config.finalize_model_grads_func = hooks
        learnt = sum(int((rows.labels_BS != IGNORED).sum()) for rows in text.rows)
        dist.all_reduce(total)
        return Computed(float(total) / learnt, {name: gradient / learnt for name, gradient in self._gradients()})

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Where this rank's weights gather theirs; of the audio side those of the first stage alone."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and (self._first or name.startswith("lm.")):
                yield name, parameter.main_grad  # type: ignore[attr-defined]


def audio_part(config: Config, step: _Step) -> float:
    """The audio side's part of a step's operations."""
    from megatron_af.decoder.operations import tally_decoder
    from megatron_af.flops import Tally
    from megatron_af.train.flops import answer_amounts, answer_tally

    stage, batch = config.curriculum["step"], step.batch
    amounts = answer_amounts(config.model.encoder.tokens_per_window, batch.audio, batch.text.rows)
    decoder = Tally(stage.trains)
    tally_decoder(decoder, config.model, True)
    return 1 - decoder.of(amounts) / answer_tally(config.model, stage).of(amounts)


def _summed(total: Tensor, losses_N: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    total += losses_N.detach().double().sum()
    return losses_N.sum(), torch.tensor(losses_N.numel(), dtype=torch.int), {}


class SentAlong(nn.Module):
    """A stage whose input and output hold a micro-batch's audio tokens behind its hidden states; the first stage makes
    them, the last one sends nothing on."""

    def __init__(self, chunk: Any, front: Any, length: int) -> None:
        super().__init__()
        self.config, self._chunk, self._front, self._length = chunk.config, chunk, front, length
        self._received: Tensor | None = None

    def set_input_tensor(self, received: list[Tensor | None]) -> None:
        """As megatron-core's schedules give a stage what came from the one before."""
        (self._received,) = received

    def forward(
        self, rows: Any, mel_WFM: Tensor | None, windows: int, places_LB: Tensor, audio_of_BL: Tensor
    ) -> Tensor:
        from megatron_af.data.batch import AudioKeys

        if self._received is None:
            assert mel_WFM is not None
            tokens_TD = self._front(self._front.encode(mel_WFM), [windows])
            tokens_LBD = tokens_TD[places_LB]
        else:
            hidden_SBH, tokens_LBD = self._received[: self._length], self._received[self._length :]
            self._chunk.set_input_tensor([hidden_SBH])
        audio = AudioKeys(tokens_LBD=tokens_LBD, audio_of_BL=audio_of_BL)
        output: Tensor = self._chunk(rows, audio, self._front.added_rows.detach())
        return output if self._chunk.post_process else torch.cat([output, tokens_LBD])
