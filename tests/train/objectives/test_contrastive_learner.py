"""Contrastive stages: every layout computes what one process computes; the tool resumes and hands its encoder on."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megatron_af.audio import clap as clap_module
from megatron_af.audio import mel_norm
from megatron_af.audio.augment import draw_mix_up, mix
from megatron_af.audio.encoder import AudioEncoder
from megatron_af.audio.mel_norm import MelNorm
from megatron_af.config import ContrastiveConfig, EncoderConfig, FrontEndConfig, StageConfig
from megatron_af.config.loading import load_config
from megatron_af.data.batch import StepAudio, StepBatch, assign_clips
from megatron_af.data.caption_texts import CaptionBatch, Captions
from megatron_af.flops import Tally
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.check import check
from megatron_af.train.callbacks import Callback, Record
from megatron_af.train.objectives import contrastive_learner as learner_module
from megatron_af.train.objectives.contrastive_learner import ContrastiveLearner, build_clap
from megatron_af.train.trainable import select
from megatron_af.train.trainer import Trainer
from tests import tiny
from tests.contrastive_run import config, write_run
from tests.distributed import run_distributed
from tests.plan.measured import LiveTensors
from tests.text.toy_tokenizer import toy_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
WORDS = ("dog", "rain", "bell", "door", "frog", "wind")
SAMPLES = [
    Captions(
        clip=i,
        positives=tuple(f"a {word} {n}" for n in range(1 + i % 3)),
        negatives=tuple(f"no {word} {n}" for n in range(i % 2)),
        dataset=i % 2,
    )
    for i, word in enumerate(WORDS)
]


def batch(
    *, dp_rank: int, dp_size: int, mp_rank: int, mp_size: int, one_window: bool = False
) -> StepBatch[CaptionBatch]:
    """One rank's share of six samples, of one to three windows each."""
    share = len(SAMPLES) // dp_size
    own = SAMPLES[dp_rank * share : (dp_rank + 1) * share]
    mels = [tiny.mel_of(sample.clip)[: 1 if one_window else None] for sample in own]
    windows = tuple(len(mel) for mel in mels)
    owners = assign_clips(windows, mp_size)
    mine = [mels[clip] for clip in owners[mp_rank]]
    return StepBatch(
        audio=StepAudio(
            clip_windows=windows,
            owners=owners,
            mel_WFM=torch.cat(mine) if mine else None,
            seconds=10.0 * sum(windows),
        ),
        text=CaptionBatch(captions=tuple(replace(sample, clip=i) for i, sample in enumerate(own))),
        sample_ids=tuple(str(sample.clip) for sample in own),
    )


def one_step(
    rank: int, world_size: int, layout: dict[str, Any], text_micro_batch: int = 0, windows_at_once: int = 64
) -> dict[str, Any]:
    clap_module.WINDOWS_AT_ONCE = windows_at_once
    settings = config(**layout)
    clap = replace(settings.model.clap, text_micro_batch=text_micro_batch)
    settings = replace(settings, model=replace(settings.model, clap=clap))
    stage = settings.curriculum["stage"]
    groups = process_groups.initialize(settings.parallel, settings.seed)
    model = build_clap(settings, toy_tokenizer(), current_device())
    select(model.named_parameters(), stage)
    objective = ContrastiveLearner(settings, stage, model, groups, torch.device("cpu"))
    ranks = {"dp_rank": groups.data_rank, "dp_size": groups.data_size}
    ranks |= {"mp_rank": groups.model_rank, "mp_size": groups.model_size}
    record = objective.forward_backward(batch(**ranks))
    gradients = {n: p.main_grad.clone() for n, p in model.named_parameters() if hasattr(p, "main_grad")}
    norm = objective.optimizer.step_checked()
    return {
        "record": record,
        "gradients": gradients,
        "norm": norm,
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
        "statistics": dict(model.front.encoder.bn0.named_buffers()),
    }


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return run_distributed(one_step, 1, {})[0]


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DP2": (2, {}),
    "DP3": (3, {}),
    "TP2": (2, {"tensor": 2}),
    "PP2xDP2": (4, {"pipeline": 2}),
    "DP2+ZeRO-1": (2, {"distributed_optimizer": True}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_one_process(reference: dict[str, Any], layout: str):
    for result in run_distributed(one_step, *LAYOUTS[layout]):
        assert result["record"]["loss"] == pytest.approx(reference["record"]["loss"], rel=1e-6)
        assert result["record"]["samples"] == 6
        assert result["norm"] == pytest.approx(reference["norm"], rel=1e-5)
        torch.testing.assert_close(result["statistics"], reference["statistics"])
        if layout != "DP2+ZeRO-1":  # there each rank keeps the sum of its own shard only
            for name, gradient in reference["gradients"].items():
                error = (result["gradients"][name] - gradient).abs().max()
                assert error <= 1e-5 * gradient.abs().max() + 1e-9, name
        for name, weight in reference["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=0, atol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("parts", [1, 4])
def test_captions_in_parts_change_nothing(reference: dict[str, Any], parts: int):
    """18 texts one by one, and in parts of four, whose gradients must be those of all at once."""
    (result,) = run_distributed(one_step, 1, {}, parts)
    assert result["record"] == pytest.approx(reference["record"], rel=1e-6)
    for name, gradient in reference["gradients"].items():
        error = (result["gradients"][name] - gradient).abs().max()
        assert error <= 1e-5 * gradient.abs().max() + 1e-9, name


@pytest.mark.parametrize(("layout", "windows_at_once"), [("one", 1), ("one", 4), ("DP2", 2), ("TP2", 2)])
def test_windows_in_parts_change_nothing(reference: dict[str, Any], layout: str, windows_at_once: int) -> None:
    """Twelve windows of six clips, a clip or some at a time; the mel norm's statistics are those of all of them."""
    ranks, parallel = LAYOUTS.get(layout, (1, {}))
    for result in run_distributed(one_step, ranks, parallel, 4, windows_at_once):
        assert result["record"] == pytest.approx(reference["record"], rel=1e-6)
        torch.testing.assert_close(result["statistics"], reference["statistics"])
        for name, gradient in reference["gradients"].items():
            error = (result["gradients"][name] - gradient).abs().max()
            assert error <= 1e-5 * gradient.abs().max() + 1e-9, name


class NormedMeans(AudioEncoder):
    """The mel norm and, of each quarter of a window, a layer over its mean: 4,096 clips in a second."""

    tokens_per_window, feature_dim, time_steps = 4, 16, 4

    def problems(self, front_end: FrontEndConfig) -> Iterator[str]:
        return iter(())

    def tally(self, tally: Tally) -> bool:
        return True

    def build(self, front_end: FrontEndConfig, *, pretraining: bool = False) -> nn.Module:
        norm = MelNorm(front_end.mel_bins)
        norm.learns_statistics = pretraining
        quarters = nn.AvgPool1d(front_end.window_frames // 4)
        return NormedMeansNetwork(norm, quarters, nn.Linear(front_end.mel_bins, 64), nn.Linear(64, 16))


class NormedMeansNetwork(nn.Module):
    def __init__(self, norm: MelNorm, quarters: nn.Module, first: nn.Linear, last: nn.Linear) -> None:
        super().__init__()
        self.norm, self.quarters, self.first, self.last = norm, quarters, first, last

    def forward(self, mel_WFM: torch.Tensor) -> torch.Tensor:
        means_W4M = self.quarters(self.norm(mel_WFM).transpose(1, 2)).transpose(1, 2)
        return self.last(F.gelu(self.first(means_W4M.to(self.first.weight.dtype))))


PAIRS, POSITIVES, NEGATIVES = 4096, 3, 9  # M = 3, and N = 3 for each of them


def _paper_batch(rank: int, world_size: int, at_once: int) -> dict[str, Any]:
    """Loss and gradients of 4,096 pairs, ``at_once`` windows and captions at a time."""
    clap_module.WINDOWS_AT_ONCE = mel_norm.WINDOWS_AT_ONCE = at_once
    settings = config()
    stage = replace(settings.curriculum["stage"], global_batch_samples=PAIRS)
    front_end = replace(settings.model.front_end, window_seconds=0.4, overlap_seconds=0.0)
    encoder = EncoderConfig(kind=f"{__name__}:NormedMeans")
    clap = replace(settings.model.clap, text_micro_batch=at_once, text_max_tokens=12)
    model_config = replace(settings.model, front_end=front_end, encoder=encoder, clap=clap)
    settings = replace(settings, model=model_config, curriculum={"stage": stage})
    groups = process_groups.initialize(settings.parallel, settings.seed)
    model = build_clap(settings, toy_tokenizer(), current_device())
    model.front.double()  # float32 would round sums over so many by as much as the parts may differ
    select(model.named_parameters(), stage)
    learner_module.build_optimizer = lambda *_: SimpleNamespace(zero_grad=lambda: None)  # there is none for float64
    objective = ContrastiveLearner(settings, stage, model, groups, torch.device("cpu"))
    draw = random.Random(0)
    said = [f"{draw.choice(WORDS)} {n}" for n in range(600)]
    everyone = [(draw.sample(said, POSITIVES), draw.sample(said, NEGATIVES)) for _ in range(PAIRS)]
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(PAIRS, front_end.window_frames, front_end.mel_bins, generator=generator) * 10 - 40
    share = PAIRS // world_size
    own = slice(rank * share, (rank + 1) * share)
    captions = tuple(
        Captions(clip=clip, positives=tuple(yes), negatives=tuple(no), dataset=clip % 2)
        for clip, (yes, no) in enumerate(everyone[own])
    )
    audio = StepAudio(clip_windows=(1,) * share, owners=(tuple(range(share)),), mel_WFM=mel[own], seconds=0.4 * share)
    step = StepBatch(audio=audio, text=CaptionBatch(captions=captions), sample_ids=tuple(map(str, range(share))))
    record = objective.forward_backward(step)
    return {"record": record, "gradients": {n: p.main_grad.clone() for n, p in model.named_parameters()}}


def test_4096_pairs_with_the_papers_captions_have_the_undivided_batchs_gradients() -> None:
    """Gradient caching: every gradient is that of the undivided batch, on one rank and on several."""
    (whole,) = run_distributed(_paper_batch, 1, 1_000_000)
    norm = torch.stack([gradient.norm() for gradient in whole["gradients"].values()]).norm()
    assert norm > 1e-3
    for ranks in (1, 2, 4):
        for cached in run_distributed(_paper_batch, ranks, 64):
            assert cached["record"]["samples"] == PAIRS
            assert cached["record"]["loss"] == pytest.approx(whole["record"]["loss"], rel=1e-6)
            for name, gradient in whole["gradients"].items():
                error = (cached["gradients"][name] - gradient).norm()
                assert error <= 1e-6 * max(gradient.norm(), 1e-4 * norm), name


def _audio_memory(rank: int, world_size: int) -> tuple[int, ...]:
    """Bytes of live tensors at their most while windows go through HTS-AT and back, besides the windows themselves: 16
    of them, 128 by 16, and 128 at once."""
    process_groups.initialize(config().parallel, 0)
    front = build_clap(config(), toy_tokenizer(), current_device()).front.train()
    found = []
    for count, at_once in ((16, 16), (128, 16), (128, 128)):
        clap_module.WINDOWS_AT_ONCE = mel_norm.WINDOWS_AT_ONCE = at_once
        mel = torch.randn(count, front.front_end.window_frames, front.front_end.mel_bins)
        live = LiveTensors()
        live.tell(mel)
        with live:
            front.embed_audio(mel, [1] * count)[:, 0].sum().backward()
        found.append(live.most - mel.nbytes)
    return tuple(found)


def test_many_windows_need_the_memory_of_some() -> None:
    few, many, undivided = run_distributed(_audio_memory, 1)[0]
    assert undivided > 6 * few and many < 1.3 * few, (few, many, undivided)


def _caption_memory(rank: int, world_size: int, parts: int) -> list[int]:
    """Bytes that the graph of 64 and of 256 captions holds on to until the backward pass."""
    groups = process_groups.initialize(config().parallel, 0)
    whole = config()
    whole = replace(whole, model=replace(whole.model, clap=replace(whole.model.clap, text_micro_batch=parts)))
    model = build_clap(whole, toy_tokenizer(), current_device())
    select(model.named_parameters(), StageConfig(trainable=("*",)))
    objective = ContrastiveLearner(whole, whole.curriculum["stage"], model, groups, torch.device("cpu"))
    weights = {parameter.untyped_storage().data_ptr() for _, parameter in model.named_parameters()}
    found = []
    for count in (64, 256):
        held: dict[int, int] = {}

        def keep(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            objective._embed([f"dog rain bell {n}" for n in range(count)])
        found.append(sum(held.values()))
    return found


def test_captions_in_parts_hold_no_activations():
    whole, parts = (run_distributed(_caption_memory, 1, size)[0] for size in (0, 16))
    assert whole[1] > 3 * whole[0] > 0
    assert parts[1] < whole[1] / 20


def _temperatures(rank: int, world_size: int, start: float, push: float, precision: str, layout: dict[str, Any]) -> Any:
    """Temperature before and after each of four steps; with ``push``, that is the gradient of log(1 / temperature)."""
    settings = replace(config(**layout), precision=precision)
    stage = settings.curriculum["stage"]
    groups = process_groups.initialize(settings.parallel, settings.seed)
    model = build_clap(settings, toy_tokenizer(), current_device())
    log_scale = dict(model.named_parameters())["clap.log_scale"]
    log_scale.data.fill_(-math.log(start))
    select(model.named_parameters(), stage)
    objective = ContrastiveLearner(settings, stage, model, groups, torch.device("cpu"))
    ranks = {"dp_rank": groups.data_rank, "dp_size": groups.data_size, "mp_rank": 0, "mp_size": 1}
    found = [1 / model.front.scale.item()]
    for _ in range(4):
        objective.forward_backward(batch(**ranks))
        if push:
            log_scale.main_grad.fill_(push)
        objective.optimizer.step_checked()
        found.append(1 / model.front.scale.item())
    return found


LIMITED = [
    ("fp32", {}),
    ("bf16", {}),
    ("fp32", {"distributed_optimizer": True}),
    ("bf16", {"distributed_optimizer": True}),
]


@pytest.mark.parametrize(("precision", "layout"), LIMITED, ids=["fp32", "bf16", "fp32+ZeRO-1", "bf16+ZeRO-1"])
def test_the_temperature_stops_at_its_limit_and_leaves_it_again(precision: str, layout: dict[str, Any]):
    for pushed in run_distributed(_temperatures, 2, 0.0101, -1.0, precision, layout):
        assert pushed[-1] == pytest.approx(0.01, rel=2**-5) and min(pushed[1:]) >= 0.01 * (1 - 1e-5)
    # far beyond it (an older checkpoint may be), the loss of unlike pairs still pulls it back, and at once
    for free in run_distributed(_temperatures, 2, 0.001, 0.0, precision, layout):
        assert free[0] < 0.002 and free[1] >= 0.01 * (1 - 1e-5)
        assert free[-1] > 1.005 * free[1], "the temperature sticks at its limit"


def test_a_learnt_temperature_starts_above_its_limit():
    settings = config()
    clap = replace(settings.model.clap, temperature=0.005)
    problem, *_ = set(check(replace(settings, model=replace(settings.model, clap=clap)), 1)) - set(check(settings, 1))
    assert problem.startswith("model.clap.temperature = 0.005: a learnt one stops at 0.01; start above it")
    fixed = replace(clap, learn_temperature=False)
    assert check(replace(settings, model=replace(settings.model, clap=fixed)), 1) == check(settings, 1)


def test_everything_that_should_learn_gets_a_gradient(reference: dict[str, Any]):
    still = {name for name, gradient in reference["gradients"].items() if not gradient.any()}
    # a key's bias shifts all scores of a query alike; the one token type of BERT has no rival either way
    assert {name for name in still if "key.bias" not in name} <= {
        "clap.text.model.embeddings.token_type_embeddings.weight"
    }
    assert reference["record"]["temperature"] == pytest.approx(0.07)


def _clip_by_hand(rank: int, world_size: int, mix_up: float) -> None:
    """CLIP's loss is the mean of two cross entropies over the batch, with each sample's first caption alone; mixed,
    that of the mixture with both captions, by their shares."""
    groups = process_groups.initialize(config().parallel, 0)
    whole = config(ContrastiveConfig(loss="clip", mix_up=mix_up))
    model = build_clap(whole, toy_tokenizer(), current_device())
    select(model.named_parameters(), StageConfig(trainable=("*",), frozen=("encoder.bn0.*",)))
    objective = ContrastiveLearner(whole, whole.curriculum["stage"], model, groups, torch.device("cpu"))
    front = model.front.train()
    step = batch(dp_rank=0, dp_size=1, mp_rank=0, mp_size=1, one_window=True)
    torch.manual_seed(7)
    losses = objective._losses(step)
    torch.manual_seed(7)
    everyone, mel = torch.arange(len(SAMPLES)), step.audio.mel_WFM
    partner, share = everyone.roll(1), torch.ones(len(SAMPLES))
    if mix_up:
        partner, share = draw_mix_up(len(SAMPLES), mix_up, torch.device("cpu"))
        mel = mix(mel, partner, share)
    audio = front.embed_audio(mel, [1] * len(SAMPLES))
    text = front.embed_text(*front.clap.text.tokenize([sample.positives[0] for sample in SAMPLES]))

    def loss(order: torch.Tensor) -> torch.Tensor:
        scores = front.scale * audio @ text[order].t()
        both = (F.cross_entropy(s, everyone, reduction="none") for s in (scores, scores.t()))
        return sum(both) / 2

    torch.testing.assert_close(losses, share * loss(everyone) + (1 - share) * loss(partner), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mix_up", [0.0, 0.5])
def test_clips_loss_plain_and_mixed(mix_up: float):
    run_distributed(_clip_by_hand, 1, mix_up)


def _mixed_by_hand(rank: int, world_size: int, symmetric: bool) -> None:
    """Ragged captions of six mixed clips: each loss is that of the mixture with both captions, by their shares."""
    groups = process_groups.initialize(config().parallel, 0)
    whole = config(ContrastiveConfig(mix_up=0.5, symmetric=symmetric))
    model = build_clap(whole, toy_tokenizer(), current_device())
    select(model.named_parameters(), StageConfig(trainable=("*",), frozen=("encoder.bn0.*",)))
    objective = ContrastiveLearner(whole, whole.curriculum["stage"], model, groups, torch.device("cpu"))
    front = model.front.train()
    step = batch(dp_rank=0, dp_size=1, mp_rank=0, mp_size=1, one_window=True)
    torch.manual_seed(7)
    losses = objective._losses(step)
    record = objective._record(losses, step)
    assert record["loss/a"] == pytest.approx(losses[::2].mean().item())
    assert record["loss/b"] == pytest.approx(losses[1::2].mean().item())
    torch.manual_seed(7)
    partner, share = draw_mix_up(len(SAMPLES), 0.5, torch.device("cpu"))
    audio = front.embed_audio(mix(step.audio.mel_WFM, partner, share), [1] * len(SAMPLES))

    def scores(texts: tuple[str, ...], i: int) -> torch.Tensor:
        if not texts:
            return torch.zeros(0)
        return (front.scale * front.embed_text(*front.clap.text.tokenize(texts)) @ audio[i]).exp()

    everyone = tuple(text for sample in SAMPLES for text in sample.positives)
    for i, (other, own_share) in enumerate(zip(partner.tolist(), share.tolist(), strict=True)):
        expected = 0.0
        for sample, weight in ((SAMPLES[i], own_share), (SAMPLES[other], 1 - own_share)):
            denominator = scores(everyone, i).sum() + scores(sample.negatives, i).sum()
            expected -= weight * torch.log(scores(sample.positives, i).sum() / denominator)
            found = scores(sample.positives, i) / sum(scores(sample.positives, j) for j in range(len(SAMPLES)))
            expected -= weight * torch.log(found).mean() * symmetric
        torch.testing.assert_close(losses[i], expected, rtol=1e-5, atol=1e-5)
    assert len(set(partner.tolist())) == len(SAMPLES) and share.min() < 0.95


@pytest.mark.parametrize("symmetric", [False, True])
def test_mixed_loss_counts_both_captions_by_their_shares(symmetric: bool):
    run_distributed(_mixed_by_hand, 1, symmetric)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


class Losses(Callback):
    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_step(self, trainer: Trainer, record: Record) -> None:
        self.by_step[int(record["step"])] = record["loss"]


def _train(rank: int, world_size: int, file: Path, *overrides: str) -> dict[int, float]:
    losses = Losses()
    with Trainer(load_config(file, overrides), [losses]) as trainer:
        trainer.train()
    return losses.by_step


def test_resumes_exactly_and_hands_its_encoder_on(run_file: Path):
    through = run_distributed(_train, 2, run_file, "name=through", "stage=clap")[0]
    assert set(through) == set(range(1, 7))
    run_distributed(_train, 2, run_file, "name=cut", "stage=clap", "curriculum.clap.steps=3")
    resumed = run_distributed(_train, 2, run_file, "name=cut", "stage=clap")[0]
    assert resumed == {step: through[step] for step in (4, 5, 6)}

    assert set(run_distributed(_train, 2, run_file, "name=through", "stage=align")[0]) == {1, 2}
    manifest = json.loads(next((run_file.parent / "runs/through/align").rglob("checkpoint.json")).read_text())
    assert "clap/checkpoints" in manifest["parts"]["encoder"]


def test_tool_finds_the_contrastive_stage(run_file: Path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/pretrain_clap.py"), "--config", str(run_file), "name=tool"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "step 6/6" in done.stdout
    assert (run_file.parent / "runs/tool/clap/checkpoints/latest").is_file()
