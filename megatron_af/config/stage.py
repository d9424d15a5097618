"""A stage of a curriculum: what trains, on what, for how long."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from megatron_af.config.effects import Answers, Length, Nothing, Order, Rounding, Weights
from megatron_af.config.ranges import BelowOne, Count, NotNegative, Positive, Whole


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: Weights[Positive] = 1e-4
    gate_learning_rate_scale: Weights[NotNegative] = 1.0
    """Factor on the learning rate of the tanh gates; short runs need the gates to open sooner."""
    encoder_learning_rate_scale: Weights[NotNegative] = 1.0
    weight_decay: Weights[NotNegative] = 0.1
    beta1: Weights[BelowOne] = 0.9
    beta2: Weights[BelowOne] = 0.999
    eps: Weights[Positive] = 1e-8
    clip_norm: Weights[NotNegative] = 1.0
    schedule: Weights[Literal["constant", "cosine"]] = "constant"
    """``constant`` or ``cosine``, both after a linear warm-up."""
    warmup_steps: Weights[Whole] = 0
    min_learning_rate: Weights[NotNegative] = 0.0
    """Where the cosine schedule ends."""

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it, with its fix; ``key``: where it stands in the configuration."""
        if self.min_learning_rate > self.learning_rate:
            yield (
                f"{key}.min_learning_rate = {self.min_learning_rate}: must not exceed "
                f"{key}.learning_rate = {self.learning_rate}"
            )


@dataclass(frozen=True, kw_only=True)
class BoundsConfig:
    """Where a metric has to lie; a side that is not named is open."""

    min: Nothing[float | None] = None
    max: Nothing[float | None] = None

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it; ``key``: where it stands in the configuration."""
        if self.min is not None and self.max is not None and self.min > self.max:
            yield f"{key}: nothing lies between min = {self.min} and max = {self.max}"


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    loss: Weights[Literal["af_clap", "clip"]] = "af_clap"
    """``af_clap``: positives as ``positives`` says, and the sample's own hard negatives; ``clip``: the plain symmetric
    loss on one positive per sample, another one each step."""
    positives: Weights[Literal["sum", "each", "one"]] = "sum"
    """How ``af_clap`` counts a sample's captions. ``sum``: together inside the logarithm, as the paper writes it: one
    that fits is enough. ``each``: the mean of a term for each, so that all have to fit. ``one``: one of them is drawn a
    step, by the sample's place in the data's order."""
    symmetric: Weights[bool] = False
    """``af_clap`` also asks each caption for its audio among the batch's, as the other half of CLIP's loss does; the
    paper's formula asks each audio for its captions alone, and what is asked for by text is found less well. Neither
    this nor ``positives`` changes ``clip``."""
    mix_up: Weights[NotNegative] = 0.0
    """Parameter of the Beta distribution that mixes the audio of two samples, whose captions then both count (HTS-AT
    uses 0.5); 0: none. Needs one window per clip."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What HTS-AT does not hear of its windows while it trains (SpecAugment): two stripes of time and two of frequency,
    others in every window."""

    time_seconds: Weights[NotNegative] = 0.0
    """No stripe of time is longer; HTS-AT's recipe: 0.64 of windows of 10 s. 0: none."""
    mel_bins: Weights[Whole] = 0
    """No stripe of frequency is wider; HTS-AT's recipe: 8 of 64. 0: none."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters on the language model's layers; they train by the pattern ``lm.*.lora.*``."""

    targets: Weights[tuple[Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"], ...]] = (
        "linear_qkv",
        "linear_proj",
        "linear_fc1",
        "linear_fc2",
    )
    """Linears of each layer that get one: of queries, keys and values together, behind attention, and the first (gate
    and up together) and the second of the feed-forward unit."""
    rank: Weights[Count] = 16
    alpha: Weights[Positive] = 32.0
    """What an adapter adds is scaled by ``alpha / rank``."""
    dropout: Weights[BelowOne] = 0.0
    """Of what goes into an adapter, while it trains."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def computes(self) -> tuple[set[str], int, float]:
        """What the weights of adapters are read with: those of another one give other sums."""
        return set(self.targets), self.rank, self.alpha

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it, with its fix; ``key``: ``curriculum.NAME.lora``."""
        if not self.targets:
            yield f"{key}.targets is empty: name linears, such as [linear_qkv, linear_proj], or take lora out"
        if doubled := [target for target in dict.fromkeys(self.targets) if self.targets.count(target) > 1]:
            yield f"{key}.targets: {', '.join(doubled)} stands there more than once; name each linear once"


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Rows that a stage does not learn from, looked at while it trains (``train/callbacks/watch.py``)."""

    dataset: Nothing[str] = ""
    """Data set of ``data.datasets``, such as a development split; empty: none is watched."""
    every_steps: Nothing[Count] = 50
    samples: Nothing[Count] = 64
    """How many of its samples, in whole global batches."""
    best: Nothing[Literal["", "loss", "sure"]] = ""
    """By what the best checkpoint is told: the lowest ``loss`` on these rows, or the most answers that are ``sure``. It
    is kept as ``best`` beside ``latest``, and is what later stages start from, what is measured and what is released;
    training goes on from the latest one. Empty: the latest one is all of that."""
    patience: Length[Whole] = 0
    """Looks in a row without a better one after which the stage is done before its last step; 0: never."""

    @property
    def measure(self) -> list[str | int]:
        """What its best number is of: with that of another one it cannot be compared."""
        return [self.dataset, self.best, self.samples]

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it, with its fix; ``key``: ``curriculum.NAME.watch``."""
        if self.best and not self.dataset:
            yield f"{key}.best = {self.best}: nothing is watched; name a development split as {key}.dataset"
        if self.patience and not self.best:
            yield f"{key}.patience = {self.patience}: needs {key}.best, which says what is better: loss or sure"


@dataclass(frozen=True, kw_only=True)
class SpikesConfig:
    """A loss that leaves its course: go back to the checkpoint before it, and leave out what was seen since
    (``train/callbacks/spikes.py``; PaLM, Chowdhery et al. 2022, section 5.1)."""

    deviations: Weights[NotNegative] = 0.0
    """How far above the running median a loss is a spike, in robust standard deviations (1.4826 times the median
    distance from it) of the last 128 steps; 0: spikes are not acted on."""
    steps: Weights[Count] = 3
    """In a row, before the run goes back."""
    times: Weights[Whole] = 2
    """How often a stage goes back; the next spike ends the run, and no restart helps."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One part of a curriculum: what trains, on what, for how long."""

    objective: Weights[str] = "answer"
    """``answer`` (the language-model loss of Audio Flamingo), ``contrastive`` (AF-CLAP), or ``module:Class`` of your
    own (``megatron_af/train/objectives/base.py``)."""
    entry: Weights[dict[str, str]] = field(default_factory=dict)
    """Part of the model (``encoder``, ``transform``, ``xattn``, ``lm``, ``lora``, ``rows``, or ``all``) -> the name of
    an earlier stage or the path of a checkpoint whose weights it starts from. Parts not named start fresh."""
    trainable: Weights[tuple[str, ...]] = ()
    """Patterns (fnmatch) over parameter names; everything else is frozen."""
    frozen: Weights[tuple[str, ...]] = ()
    """Exceptions to ``trainable``."""
    lora: LoRAConfig | None = None
    """Adapters beside the linears of a frozen language model; they are the part ``lora`` of its checkpoints."""
    augment: AugmentConfig | None = None
    """How the windows differ each time that the encoder learns from them; without it, as ``model.encoder.spec_augment``
    says."""
    blend: Order[dict[str, float]] = field(default_factory=dict)
    """Data set -> weight, in passes over it per epoch."""
    max_windows: Order[Count] = 3
    """Audio windows per clip; longer clips are cut."""
    max_text_tokens: Order[Count] = 512
    global_batch_samples: Order[Count] = 8
    batch_tokens: Order[Whole] = 0
    """Budget of a global batch in audio and text tokens, counting every sample at its longest; above 0 it takes the
    place of ``global_batch_samples``, so a stage of longer clips takes fewer samples per step of the same cost."""
    micro_batch_samples: Rounding[Count] = 8
    """Text rows of a micro-batch: samples, or packed rows under ``pack_tokens``."""
    pack_tokens: Rounding[Whole] = 0
    """Fill text rows with several samples up to this many tokens; 0: one sample per row."""
    length_buckets: Order[tuple[Count, ...]] = ()
    """Longest row of each length bucket, in audio windows of all its clips, ascending; longer rows form one more. A
    global batch then holds rows of one bucket, as far as an epoch's rows allow (``megatron_af.data.buckets``). Empty:
    lengths mix, which packed rows do not mind."""
    questions_per_sample: Order[Count] = 1
    """Question-answer pairs drawn from a row; they share its clips and are packed into one text row."""
    steps: Length[Count] = 100
    passes: Length[NotNegative] = 0.0
    """Length in passes over the blend (its weights times its rows); above 0 it takes the place of ``steps``."""
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """Of stages with ``objective: contrastive``."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    spikes: SpikesConfig = field(default_factory=SpikesConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    evaluation: Answers[tuple[str, ...]] = ()
    """Data sets of ``data.datasets`` that the stage's last checkpoint is measured on."""
    calibrate: Answers[str] = ""
    """Data set of ``data.datasets``, such as a development split, that tells how sure an answer must be: measuring the
    stage finds the confidence that 95% of the right answers there have, below which ``unsure`` is told in place of an
    answer (docs/answers.md). Its questions name their options. Empty: nobody finds out."""
    suites: Answers[tuple[str, ...]] = ()
    """Benchmarks that it is measured on: names of ``configs/benchmarks``, or paths of YAML files."""
    exit_gate: dict[str, BoundsConfig] = field(default_factory=dict)
    """Metric of the last step (``loss``) or of the evaluation (``benchmark/metric``) -> bounds that it must keep;
    the curriculum stops at a stage that does not."""

    @property
    def is_measured(self) -> bool:
        return bool(self.evaluation or self.suites)

    def origin_of(self, part: str) -> str | None:
        """The earlier stage or checkpoint that a part of the model starts from; None: it starts fresh."""
        return self.entry.get(part, self.entry.get("all"))

    def trains(self, name: str) -> bool:
        """Whether the parameter of a canonical name learns."""
        named = any(fnmatchcase(name, pattern) for pattern in self.trainable)
        return named and not any(fnmatchcase(name, pattern) for pattern in self.frozen)

    def problems(self, key: str) -> Iterator[str]:
        """What it lacks or does not go together in it, with its fix; ``key``: ``curriculum.NAME``."""
        if not self.trainable:
            yield f"{key}.trainable is empty: name what learns, such as 'lm.*.xattn.*' or '*'"
        if not self.blend:
            yield f"{key}.blend is empty: name data sets of data.datasets with weights above 0"
        for dataset, weight in self.blend.items():
            if weight <= 0:
                yield f"{key}.blend.{dataset} = {weight}: must be above 0; remove it to leave the data set out"
        if list(self.length_buckets) != sorted(set(self.length_buckets)):
            yield f"{key}.length_buckets = {list(self.length_buckets)}: must ascend, each longer than the one before"
        longest = self.questions_per_sample * self.max_text_tokens
        if 0 < self.pack_tokens < longest:
            yield (
                f"{key}.pack_tokens = {self.pack_tokens}: the longest sample has {longest} tokens "
                f"({key}.questions_per_sample x max_text_tokens); raise it to that, or set it to 0 to pack none"
            )
