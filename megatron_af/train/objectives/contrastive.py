"""The objective of AF-CLAP: audio and its captions meet in the joint space, away from everything else in the batch.

Its model is the encoder, a text tower and the joint space; it has no language model. One step's forward and backward
pass is in ``contrastive_learner.py``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from megatron_af.config import LOWEST_TEMPERATURE, Config, StageConfig
from megatron_af.config.errors import divides
from megatron_af.runs.presence import is_there
from megatron_af.train.objectives.base import Objective

if TYPE_CHECKING:
    from megatron_af.data.caption_texts import CaptionTexts
    from megatron_af.model import AudioFlamingo
    from megatron_af.parallel.device import Device
    from megatron_af.parallel.groups import Groups
    from megatron_af.text.tokenizer import Tokenizer
    from megatron_af.train.objectives.contrastive_learner import ContrastiveLearner


class Contrastive(Objective):
    parts = ("encoder", "clap")
    step_metrics = ("samples", "temperature")
    set_metrics = (
        "rows",
        *(
            f"{test}/{way}_r{k}"
            for test in ("retrieval", "all captions")
            for way in ("text_to_audio", "audio_to_text")
            for k in (1, 5, 10)
        ),
        *(f"paraphrase/{queries}_r{k}" for queries in ("original", "paraphrased", "kept") for k in (1, 10)),
        "composition/*",
        "composition, other audio/*",
        "zero_shot/accuracy",
        "zero_shot/mean_class_accuracy",
        "zero_shot/mean_average_precision",
    )
    embeds = True

    def problems(self, config: Config, stage: str) -> Iterator[str]:
        prefix, settings = f"curriculum.{stage}", config.curriculum[stage]
        clap, encoder = config.model.clap, config.model.encoder
        if settings.global_batch_samples == 1:
            yield f"{prefix}.global_batch_samples = 1: a contrastive loss compares samples; use 2 or more"
        if settings.contrastive.mix_up > 0 and settings.max_windows > 1:
            yield f"{prefix}.contrastive.mix_up mixes single windows: set {prefix}.max_windows to 1 or mix_up to 0"
        if clap.learn_temperature and clap.temperature < LOWEST_TEMPERATURE:
            yield (
                f"model.clap.temperature = {clap.temperature}: a learnt one stops at {LOWEST_TEMPERATURE}; start above "
                "it, or set model.clap.learn_temperature to false"
            )
        if not clap.text_tower:
            yield from divides("model.clap.text_heads", clap.text_heads, "model.clap.text_hidden", clap.text_hidden)
        if encoder.vector and encoder.vector_dim != clap.joint_dim:
            yield (
                f"model.encoder.vector_dim = {encoder.vector_dim}, model.clap.joint_dim = {clap.joint_dim}: an encoder "
                "that gives vectors gives those of the joint space; set both alike"
            )

    def missing(self, config: Config, stage: str) -> Iterator[str]:
        tower = config.model.clap.text_tower
        if tower and not is_there(tower):
            yield f"model.clap.text_tower = {tower}: does not exist; name a folder or a hub name, or leave it empty"

    def files(self, config: Config) -> dict[str, str]:
        return {"text_tower": config.model.clap.text_tower}

    def evaluations(self, config: Config, stage: str) -> list[tuple[str, list[str]]]:
        return [("evaluate.py", [])]

    def texts(self, config: Config, stage: StageConfig, tokenizer: Tokenizer) -> CaptionTexts:
        from megatron_af.data.caption_texts import CaptionTexts

        settings = stage.contrastive
        return CaptionTexts(
            one_positive=settings.loss == "clip" or settings.positives == "one",
            heard_seconds=config.model.front_end.heard_seconds(stage.max_windows),
        )

    def build(self, config: Config, tokenizer: Tokenizer, device: Device, fresh: Container[str]) -> AudioFlamingo:
        from megatron_af.train.objectives.contrastive_learner import build_clap

        return build_clap(config, tokenizer, device)

    def start(
        self, config: Config, stage: StageConfig, model: AudioFlamingo, groups: Groups, device: Device
    ) -> ContrastiveLearner:
        from megatron_af.train.objectives.contrastive_learner import ContrastiveLearner

        return ContrastiveLearner(config, stage, model, groups, device.torch)
