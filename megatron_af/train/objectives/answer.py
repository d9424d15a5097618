"""The objective of Audio Flamingo: answer what is asked about the audio (language-model loss on supervised tokens).

Its model is encoder, transformation layers, added rows, gated blocks and language model. One step's forward and
backward pass is in ``answer_learner.py``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.config.components import UnknownComponent
from megatron_af.train.objectives.base import Objective

if TYPE_CHECKING:
    from megatron_af.data.answer_texts import AnswerTexts
    from megatron_af.model import AudioFlamingo
    from megatron_af.parallel.device import Device
    from megatron_af.parallel.groups import Groups
    from megatron_af.text.tokenizer import Tokenizer
    from megatron_af.train.callbacks import Callback
    from megatron_af.train.objectives.answer_learner import AnswerLearner

SCORES = ("audio", "exchanged", "majority", "n")


class Answer(Objective):
    parts = ("encoder", "transform", "rows", "xattn", "lm")
    step_metrics = ("tokens", "chance_loss", "watched/sure", "gate_attn/*", "gate_ffn/*")
    set_losses = ("loss", "sample_loss", "tokens", "too_long")
    set_metrics = (
        *(f"{questions}/{score}" for questions in ("overall", "skills/*", "turns/*") for score in SCORES),
        "classes/*/recall/*",
        *("overall/gap", "overall/too_long", "overall/no_partner"),
        *("confidence/error", "confidence/answered", "confidence/right"),
    )

    def parts_of(self, stage: StageConfig) -> tuple[str, ...]:
        return (*self.parts, "lora") if stage.lora else self.parts

    def parameters(self, config: Config) -> list[str]:
        lm = config.model.lm
        families = ["encoder.*", "transform.*", "added_rows"]
        for layer in range(lm.layers):
            parts = ["input_layernorm.*", "self_attention.*", "pre_mlp_layernorm.*", "mlp.*"]
            if (layer + 1) % max(1, config.model.cross_attention.interval) == 0:
                parts.append("xattn.*")
            parts += [f"lora.{target}.*" for target in config.lora.targets] if config.lora else []
            families += [f"lm.decoder.layers.{layer}.{part}" for part in parts]
        try:
            outside = lm.component.outside_layers
        except UnknownComponent:  # a problem of its own
            return [*families, "lm.*"]
        return [*families, *(f"lm.{name}" for name in outside if not (lm.tied and name == "output_layer.weight"))]

    def problems(self, config: Config, stage: str) -> Iterator[str]:
        tokens, positions = config.curriculum[stage].max_text_tokens, config.model.lm.max_positions
        if tokens > positions:
            yield (
                f"curriculum.{stage}.max_text_tokens = {tokens}: the language model has "
                f"model.lm.max_positions = {positions}"
            )
        elif positions < tokens + (answer := config.evaluation.max_answer_tokens) and self._learns_positions(config):
            yield (
                f"curriculum.{stage}.max_text_tokens = {tokens} and evaluation.max_answer_tokens = {answer}: the "
                f"language model has learnt model.lm.max_positions = {positions} places for a question and its answer"
            )

        yield from self._adapter_problems(config, stage)

    def _adapter_problems(self, config: Config, name: str) -> Iterator[str]:
        """What keeps adapters from being trained, or from being what an earlier stage trained."""
        prefix, stage, lm = f"curriculum.{name}", config.curriculum[name], config.model.lm
        for part, origin in stage.entry.items():
            earlier = config.curriculum.get(origin)
            if earlier is None or part not in ("all", "lm", "lora"):
                continue
            if earlier.lora is None:
                if part == "lora":
                    yield f"{prefix}.entry.lora = {origin}: that stage has no lora; leave it out to start anew"
            elif stage.lora is None:
                yield (
                    f"{prefix}.entry.{part} = {origin}: its language model has adapters; give {prefix} the same lora, "
                    "or start from the merged one (tools/convert_checkpoint.py)"
                )
            elif part != "lm" and stage.lora.computes != earlier.lora.computes:
                yield (
                    f"{prefix}.entry.{part} = {origin}: {prefix}.lora has other targets, rank or alpha than "
                    f"curriculum.{origin}.lora; make them the same"
                )
        if stage.lora is None:
            return
        if learns := [weight for weight in self._language_weights(config) if stage.trains(weight)]:
            more = f" and {len(learns) - 1} more" if len(learns) > 1 else ""
            yield (
                f"{prefix}.lora: its language model must be frozen, but trainable takes in {learns[0]}{more}; name "
                "'lm.*.lora.*' (and 'lm.*.xattn.*') there in place of what names the language model"
            )
        adapters = [f"lm.decoder.layers.{i}.lora.{t}.b.weight" for i in range(lm.layers) for t in stage.lora.targets]
        if stage.origin_of("lora") is None and not any(map(stage.trains, adapters)):
            yield f"{prefix}.lora: nothing trains it; add 'lm.*.lora.*' to {prefix}.trainable, or take lora out"
        if stage.lora.rank > (most := min(lm.hidden, lm.ffn)):
            yield (
                f"{prefix}.lora.rank = {stage.lora.rank}: the linears have no higher rank than {most} "
                "(model.lm.hidden, model.lm.ffn); set it far below"
            )

    @staticmethod
    def _language_weights(config: Config) -> list[str]:
        """Names of the language model's own parameters."""
        lm = config.model.lm
        try:
            inside, outside = lm.component.inside_layers, lm.component.outside_layers
        except UnknownComponent:  # a problem of its own
            return []
        layers = [f"lm.decoder.layers.{layer}.{name}" for layer in range(lm.layers) for name in inside]
        return [*layers, *(f"lm.{name}" for name in outside if not (lm.tied and name == "output_layer.weight"))]

    @staticmethod
    def _learns_positions(config: Config) -> bool:
        try:
            return bool(config.model.lm.component.position_rows)
        except UnknownComponent:  # a problem of its own
            return False

    def evaluations(self, config: Config, stage: str) -> list[tuple[str, list[str]]]:
        return [("evaluate.py", [])]

    def texts(self, config: Config, stage: StageConfig, tokenizer: Tokenizer) -> AnswerTexts:
        from megatron_af.data.answer_texts import AnswerTexts

        return AnswerTexts(config, stage, tokenizer)

    def build(self, config: Config, tokenizer: Tokenizer, device: Device, fresh: Container[str]) -> AudioFlamingo:
        from megatron_af.model import Vocabulary, build
        from megatron_af.train.trainable import part_of

        vocabulary = Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)
        return build(config, vocabulary, device, drawn=lambda name: part_of(name) in fresh)

    def fill(self, model: AudioFlamingo, fresh: Sequence[str], groups: Groups) -> None:
        if "rows" in fresh:
            model.start_added_rows_at_mean(groups.model)

    def start(
        self, config: Config, stage: StageConfig, model: AudioFlamingo, groups: Groups, device: Device
    ) -> AnswerLearner:
        from megatron_af.train.objectives.answer_learner import AnswerLearner

        if config.model.transform.sees == "row":
            fix = "set it to clip; row is for answers of the released Audio Flamingo 1"
            raise ConfigError(f"stage {config.stage} cannot train", [f"model.transform.sees = row: {fix}"])
        return AnswerLearner(config, stage, model, groups, device.torch)

    def callbacks(self, config: Config, tokenizer: Tokenizer) -> list[Callback]:
        from megatron_af.train.callbacks.chance import Chance
        from megatron_af.train.callbacks.gates import Gates
        from megatron_af.train.callbacks.left_out import LeftOut

        return [LeftOut(), Chance(config, tokenizer), Gates(config.log_every_steps)]
