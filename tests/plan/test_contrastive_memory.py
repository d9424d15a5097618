"""The memory that is planned for a contrastive stage is what its step's tensors take, at their most."""

import dataclasses
import gc
from typing import Any

import pytest
import torch

from megatron_af.audio.recompute import WINDOWS_AT_ONCE
from megatron_af.config import Config
from megatron_af.data.batch import StepAudio, StepBatch
from megatron_af.data.caption_texts import CaptionBatch, Captions
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.load import Cut, Sample, made_of
from megatron_af.plan.memory import TEXTS, memory, static
from megatron_af.train.objectives.contrastive_learner import ContrastiveLearner, build_clap
from megatron_af.train.trainable import select
from tests import tiny
from tests.contrastive_run import config
from tests.distributed import run_distributed
from tests.plan.measured import LiveTensors
from tests.text.toy_tokenizer import toy_tokenizer

pytestmark = pytest.mark.slow

ERROR, STATIC_ERROR = 0.10, 0.02
WORDS = ("dog", "rain", "bell", "door", "frog", "wind")


def sized(samples: int, width: int, *, windows: int = 1, **clap: Any) -> Config:
    made = config()
    stage = dataclasses.replace(made.curriculum["stage"], global_batch_samples=samples, max_windows=windows)
    clap = {"text_hidden": width, "text_max_tokens": 24, **clap}
    model = dataclasses.replace(made.model, clap=dataclasses.replace(made.model.clap, **clap))
    lm = dataclasses.replace(model.lm, vocab=len(toy_tokenizer()))
    return dataclasses.replace(made, curriculum={"stage": stage}, model=dataclasses.replace(model, lm=lm))


CASES = {
    "windows": sized(24, 16),
    "texts": sized(8, 256),
    "texts some at a time": sized(24, 256, text_micro_batch=16),
    "layers of the tower again": sized(8, 256, text_layers=4, text_recompute=True),
    "longer clips": sized(8, 256, windows=3),
    "more windows than go together": sized(WINDOWS_AT_ONCE + 8, 128),
}


def batch(settings: Config) -> StepBatch[CaptionBatch]:
    """Clips and texts that are all as long as they may be, and as many texts a clip as the plan takes, none twice."""
    stage, length = settings.curriculum["stage"], settings.model.clap.text_max_tokens
    count, windows = stage.global_batch_samples, stage.max_windows
    captions = []
    for clip in range(count):
        own = [WORDS[clip // 6**place % 6] for place in range(3)]
        texts = [" ".join([*own, *[word] * length]) for word in WORDS[:TEXTS]]
        captions.append(Captions(clip=clip, positives=tuple(texts[: TEXTS // 2]), negatives=tuple(texts[TEXTS // 2 :])))
    mel = torch.cat([tiny.mel_of(0)[:1]] * count * windows)
    clips = tuple(range(count))
    audio = StepAudio(clip_windows=(windows,) * count, owners=(clips,), mel_WFM=mel, seconds=10.0 * count * windows)
    return StepBatch(audio=audio, text=CaptionBatch(captions=tuple(captions)), sample_ids=tuple(map(str, clips)))


def step(rank: int, world: int, settings: Config) -> dict[str, float]:
    stage = settings.curriculum["stage"]
    groups = process_groups.initialize(settings.parallel, settings.seed)
    live = LiveTensors()
    made = batch(settings)
    mel = made.audio.mel_WFM
    assert mel is not None
    with live:
        live.tell(mel)
        model = build_clap(settings, toy_tokenizer(), current_device())
        for tensor in [*model.front.parameters(), *model.front.buffers()]:
            live.tell(tensor)
        select(model.named_parameters(), stage)
        learner = ContrastiveLearner(settings, stage, model, groups, torch.device("cpu"))
        learner.forward_backward(made)
        learner.optimizer.step_checked()
        gc.collect()
        always = live.now
        live.most = live.now
        learner.forward_backward(made)
        learner.optimizer.step_checked()
    case = Case(config=settings, gpu=read_gpu("cpu"), world=world)
    sample = Sample(windows=(stage.max_windows,), tokens=0)
    load = made_of([sample] * stage.global_batch_samples, Cut.of(settings, stage))
    return {
        "always": always - mel.nbytes,
        "planned always": sum(static(case, 0).values()),
        "most": live.most,
        "planned": memory(case, 0, load, ahead=0).total,
    }


@pytest.mark.parametrize("name", CASES)
def test_planned_memory_of_a_contrastive_step(name: str) -> None:
    (found,) = run_distributed(step, 1, CASES[name])
    assert found["planned always"] == pytest.approx(found["always"], rel=STATIC_ERROR)
    assert found["planned"] == pytest.approx(found["most"], rel=ERROR), found
