"""Typed schema of every YAML file.

A run is one top file (``configs/demo.yaml``, ``configs/af2_3b.yaml``) that includes section files
(``configs/model/…``, ``configs/curriculum/…``) and may be changed from the command line by
``a.b.c=value``. Units stand in the names, the type says what numbers may be there (``ranges.py``), and a docstring
under a field what it is for.

    config = load_config("configs/demo.yaml", ["stage=align", "parallel.tensor=2"])     # loading.py
    validate(config, world_size=2)                                                      # runs/check.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_af.config.ranges import BelowOne, Count, Fraction, NotNegative, Positive, Seed, Whole


class ConfigError(ValueError):
    """A configuration that cannot run; the message names every problem at once.

    ``problems`` holds one line each: key, where it stands, what was expected, what to change.
    """

    def __init__(self, subject: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        count = {0: "", 1: ": 1 problem"}.get(len(problems), f": {len(problems)} problems")
        super().__init__("\n".join([f"{subject}{count}", *(f"  - {problem}" for problem in problems)]))


PARTS = ("encoder", "transform", "rows", "xattn", "lm", "clap")
"""Parts of the model: what a stage's ``entry`` names and a checkpoint stores apart. ``rows`` are the added tokens;
``clap`` (text tower and joint space) exists in contrastive stages alone, which have only it and ``encoder``."""


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """From waveform to log-mel windows (defaults: AF-CLAP; ``facts``: AF2 src/factory.py)."""

    sample_rate: Count = 16_000
    """Hz of the audio the model hears; other rates are resampled before the windows are cut."""
    window_seconds: Positive = 10.0
    overlap_seconds: NotNegative = 0.0
    """Overlap of consecutive windows; AF2 0, AF1 5.25 of 7 s."""
    fft_size: Count = 1024
    hop_samples: Count = 160
    mel_bins: Count = 64
    min_hz: NotNegative = 50.0
    max_hz: Positive = 8_000.0
    mel_scale: Literal["htk", "slaney"] = "htk"
    """``htk`` without area normalisation (AF-CLAP), or ``slaney`` with it (LAION-CLAP, ClapCap)."""
    mel_sample_rate: Whole = 0
    """Hz of the audio that the mel filters are drawn for; 0: ``sample_rate``. ClapCap draws them for 32 kHz and hears
    44.1 (msclap/models/config.py), so all its bands lie higher than ``min_hz`` and ``max_hz`` say."""

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * self.sample_rate)

    @property
    def stride_samples(self) -> int:
        return round((self.window_seconds - self.overlap_seconds) * self.sample_rate)

    @property
    def window_frames(self) -> int:
        """Mel frames of one window (1001 for AF-CLAP: centred frames on both ends)."""
        return self.window_samples // self.hop_samples + 1

    def num_windows(self, num_samples: int, max_windows: int) -> int:
        """Windows that cover ``num_samples``, at least 1 and at most ``max_windows``."""
        beyond_first = max(0, num_samples - self.window_samples)
        return min(max_windows, 1 + -(-beyond_first // self.stride_samples))


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """HTS-AT. Defaults are the released AF-CLAP encoder ("large", 278,770,007 parameters)."""

    embed_dim: Count = 256
    depths: tuple[Count, ...] = (2, 2, 12, 2)
    heads: tuple[Count, ...] = (4, 8, 16, 32)
    patch_size: Count = 4
    window_size: Count = 8
    """Side of the attention window, in patches."""
    mlp_ratio: Count = 4
    absolute_positions: bool = False
    """Add a learnt vector to every patch (HTS-AT's and Swin's ``ape``, off in AF-CLAP): without it no feature knows
    where in its window it stands, which small models hardly learn from relative positions."""
    drop_path: BelowOne = 0.1
    fusion: bool = True
    """Carry AF-CLAP's feature-fusion weights; a window of at most 10 s never goes through them."""
    classes: Whole = 527
    """Outputs of the token-semantic head, part of the released weights and unused here; 0 leaves it out."""
    stft_weights: bool = True
    """Carry the STFT and mel matrices that the released weights count among their parameters; DALI makes the mel."""
    spec_augment: bool = False
    """While training, blank two stripes of up to 64 frames and two of up to 8 mel bins in every window (HTS-AT)."""
    recompute: bool = False
    """Recompute the encoder's activations in the backward pass (bounds memory in stage 2)."""
    vector: Literal["", "mlp", "residual"] = ""
    """One vector per window, the projected mean of its tokens: through two layers (``mlp``, LAION-CLAP) or with a
    residual and a norm (``residual``, ClapCap). Empty: the tokens themselves (AF-CLAP)."""
    vector_dim: Count = 512
    """Width of that vector; 1024 in ClapCap."""

    @property
    def width(self) -> int:
        """Of the tokens."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def feature_dim(self) -> int:
        """Of what the encoder hands on: tokens, or vectors."""
        return self.vector_dim if self.vector else self.width

    @property
    def tokens_per_window(self) -> int:
        return 1 if self.vector else (256 // self.patch_size // 2 ** (len(self.depths) - 1)) ** 2


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Audio transformation layers between encoder and decoder (AF2 src/helpers.py; AF1 by ``positions``)."""

    layers: Whole = 3
    heads: Count = 8
    ffn: Count = 2048
    positions: Literal["rope", "sinusoidal"] = "rope"
    """``rope`` (AF2) or ``sinusoidal`` (AF1)."""
    rope_base: Positive = 4096.0


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """The language model. Defaults are Qwen2.5-3B."""

    family: Literal["qwen2"] = "qwen2"
    hidden: Count = 2048
    layers: Count = 36
    heads: Count = 16
    kv_heads: Count = 2
    ffn: Count = 11_008
    vocab: Count = 151_936
    """Rows of the embedding table, before added tokens and padding."""
    tied: bool = True
    """Output layer shares the embedding table."""
    rope_base: Positive = 1e6
    norm_eps: Positive = 1e-6
    max_positions: Count = 32_768


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig:
    """Gated cross-attention blocks in front of every ``interval``-th LM layer."""

    interval: int = 1
    """A block stands before LM layer i (from 0) where (i + 1) % interval == 0."""
    heads: Count = 8
    head_dim: Count = 64
    ffn_multiplier: Count = 4
    immediate: bool = False
    """Text sees only the latest audio before it (Flamingo) instead of all audio so far (Audio Flamingo)."""


@dataclass(frozen=True, kw_only=True)
class ClapConfig:
    """What contrastive pre-training adds to the encoder: text tower and joint space. Defaults are AF-CLAP's."""

    text_tower: str = "google/flan-t5-large"
    """Folder or hub name of any Hugging Face text encoder, with its tokenizer; empty: a fresh BERT of the sizes
    below, over ``data.tokenizer``."""
    text_hidden: Count = 256
    text_layers: Count = 4
    text_heads: Count = 4
    text_max_tokens: Count = 77
    """Tokens of a caption; longer ones are cut."""
    text_recompute: bool = False
    """Recompute the text tower's activations in the backward pass, layer by layer."""
    text_micro_batch: Whole = 0
    """Captions that go through the text tower at a time, and again in the backward pass: its memory no longer grows
    with positives and hard negatives. 0: all at once."""
    joint_dim: Count = 512
    temperature: Positive = 0.07
    learn_temperature: bool = False
    """Start from ``temperature`` and learn it, never below 0.01 (as CLIP does)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    lm: LMConfig = field(default_factory=LMConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    clap: ClapConfig = field(default_factory=ClapConfig)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model lies on the ranks; data parallel is what remains of the world."""

    tensor: Count = 1
    pipeline: Count = 1
    virtual_pipeline: Count = 1
    """Model chunks per pipeline stage (interleaved schedule when above 1)."""
    sequence: bool = False
    """Sequence parallelism inside the tensor-parallel group."""
    distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks (ZeRO-1)."""
    overlap: bool = False
    """Overlap gradient reduction (and parameter gathering under ZeRO-1) with the backward pass."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recompute of the LM: ``none``, ``selective`` (core attention) or ``full``."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How ``tools/prepare_data.py prepare`` turns recordings into shards."""

    channels: Literal["mix", "first"] = "mix"
    """Average the channels, or take the first (what the reference does but for mp3)."""
    max_seconds: NotNegative = 0.0
    """Longer clips are cut; 0: to what the stage with the most windows can use."""
    rows_per_shard: Count = 512
    workers: Whole = 0
    """Processes; 0: one per core."""
    max_bad_fraction: Fraction = 0.05
    """Import and preparation fail when a larger part of the rows cannot be used; what they wrote stays."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Where a data set comes from in somebody else's layout; ``tools/prepare_data.py import`` makes rows of it."""

    format: Literal["audio_flamingo", "conversations", "csv", "labels", "webdataset", "rows"]
    """AF1's and AF2's JSON manifests; JSON with ``conversations`` (AudioSkills, LongAudio); a table; a folder per
    label; tar files; a JSONL of rows whose clips may lack ``duration``."""
    path: str
    """File or folder relative to ``data.root``; for ``webdataset`` a pattern such as ``shards/*.tar``."""
    audio: str = ""
    """Folder that the recordings' names are relative to, below ``data.root``."""
    columns: dict[str, str] = field(default_factory=dict)
    """For ``csv``, what -> column: ``audio`` (or a pattern, ``{ytid}.wav``), ``id``, ``start``, ``end`` or ``duration``
    (seconds), ``caption`` (several: ``caption_1,caption_2``), ``prompt`` and ``output``, or ``label`` (``prompt`` as
    well where it is a question with the same few answers)."""
    prompt: str = ""
    """What captions or labels answer; empty: the papers' words."""
    task: str = ""
    """Task in words (``audio captioning``), for ``The task is …``."""


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """A data set made of another one's: each row behind the rows that sound most like it (AF1's few-shot samples)."""

    of: str
    """Data set of ``data.datasets``, a training split."""
    examples: Count = 7
    """Neighbours before the row itself (AF1: 7, or 3)."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    manifest: str
    """What training reads, relative to ``data.root``: a JSONL of rows (``megatron_af.data.rows.Row``) over
    recordings of any kind, or the folder of a prepared data set."""
    source: str = ""
    """JSONL that ``tools/prepare_data.py prepare`` turns into the prepared data set ``manifest``."""
    origin: ImportConfig | None = None
    """What ``tools/prepare_data.py import`` turns into ``source``."""
    neighbours: NeighboursConfig | None = None
    """What ``tools/build_retrieval.py interleave`` writes to the JSONL ``manifest``."""
    task_prefix_probability: Fraction = 0.0
    """Part of the samples that begin with ``The task is …`` (AF1: 0.5 in most of pre-training, 1 in fine-tuning)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    root: str = "data"
    """Folder, or URL that fsspec knows; every path in a manifest is relative to it and never leaves it."""
    tokenizer: str = ""
    """Folder or ``tokenizer.json``, or a hub name."""
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    text_style: Literal["af1", "af2"] = "af2"
    """Which paper's templates write the text (``megatron_af.data.templates``)."""
    workers: Count = 1
    """Threads that read recordings, and that DALI decodes with, per rank."""
    feature_cache: str = ""
    """Folder for encoder features of stages with a frozen encoder; empty: encode every step."""
    max_replaced_fraction: Fraction = 0.01
    """A run stops when a larger part of its samples had to be replaced because they could not be read."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: Positive = 1e-4
    gate_learning_rate_scale: NotNegative = 1.0
    """Factor on the learning rate of the tanh gates; short runs need the gates to open sooner."""
    encoder_learning_rate_scale: NotNegative = 1.0
    weight_decay: NotNegative = 0.1
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    eps: Positive = 1e-8
    clip_norm: NotNegative = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    """``constant`` or ``cosine``, both after a linear warm-up."""
    warmup_steps: Whole = 0
    min_learning_rate: NotNegative = 0.0
    """Where the cosine schedule ends."""


@dataclass(frozen=True, kw_only=True)
class BoundsConfig:
    """Where a metric has to lie; a side that is not named is open."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    loss: Literal["af_clap", "clip"] = "af_clap"
    """``af_clap``: all positives and the sample's own hard negatives; ``clip``: the plain symmetric loss on one
    positive per sample, another one each step."""
    mix_up: NotNegative = 0.0
    """Parameter of the Beta distribution that mixes the audio of two samples, whose captions then both count (HTS-AT
    uses 0.5); 0: none. Needs one window per clip."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One part of a curriculum: what trains, on what, for how long."""

    objective: str = "answer"
    """``answer`` (the language-model loss of Audio Flamingo), ``contrastive`` (AF-CLAP), or ``module:Class`` of your
    own (``megatron_af/train/objectives/base.py``)."""
    entry: dict[str, str] = field(default_factory=dict)
    """Part of the model (``encoder``, ``transform``, ``xattn``, ``lm``, ``rows``, or ``all``) -> the name of an
    earlier stage or the path of a checkpoint whose weights it starts from. Parts not named start fresh."""
    trainable: tuple[str, ...] = ()
    """Patterns (fnmatch) over parameter names; everything else is frozen."""
    frozen: tuple[str, ...] = ()
    """Exceptions to ``trainable``."""
    blend: dict[str, float] = field(default_factory=dict)
    """Data set -> weight, in passes over it per epoch."""
    max_windows: Count = 3
    """Audio windows per clip; longer clips are cut."""
    max_text_tokens: Count = 512
    global_batch_samples: Count = 8
    batch_tokens: Whole = 0
    """Budget of a global batch in audio and text tokens, counting every sample at its longest; above 0 it takes the
    place of ``global_batch_samples``, so a stage of longer clips takes fewer samples per step of the same cost."""
    micro_batch_samples: Count = 8
    """Text rows of a micro-batch: samples, or packed rows under ``pack_tokens``."""
    pack_tokens: Whole = 0
    """Fill text rows with several samples up to this many tokens; 0: one sample per row."""
    questions_per_sample: Count = 1
    """Question-answer pairs drawn from a row; they share its clips and are packed into one text row."""
    steps: Count = 100
    passes: NotNegative = 0.0
    """Length in passes over the blend (its weights times its rows); above 0 it takes the place of ``steps``."""
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """Of stages with ``objective: contrastive``."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: tuple[str, ...] = ()
    """Benchmarks that the stage's last checkpoint is measured on."""
    exit_gate: dict[str, BoundsConfig] = field(default_factory=dict)
    """Metric of the last step (``loss``) or of the evaluation (``benchmark/metric``) -> bounds that it must keep;
    the curriculum stops at a stage that does not."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: Whole = 0
    """0: only at the end of the stage."""
    keep: Whole = 2
    """Newest checkpoints kept per stage; the last one of a stage always stays, and so does one that a later stage or
    another run below ``output`` reads its frozen parts from. 0: all."""
    asynchronous: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the answers of a stage are measured (``tools/evaluate_hearing.py``)."""

    max_answer_tokens: Count = 32
    """Longer answers are cut; a batch is only as slow as its longest answer."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How many processes torchrun starts for a stage."""

    nodes: Count = 1
    processes_per_node: Count = 1
    """One per GPU, or what the CPU's cores allow."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are followed; MLflow's own variables (user, password, token, certificates) apply."""

    enabled: bool = True
    uri: str = ""
    """MLflow tracking server; empty: ``$MLFLOW_TRACKING_URI``, or else the sqlite store in ``output/mlflow``."""
    experiment: str = ""
    """Empty: the run's name."""
    alone: bool = True
    """A stage run on its own ends the parent run, too; a curriculum or pipeline turns this off and ends it itself."""
    system_metrics_seconds: NotNegative = 10.0
    """Between two samples of processor, memory, disk, network and GPU; 0: none."""
    linger_seconds: NotNegative = 60.0
    """How long delivery goes on after a job has ended; what is left is sent by the next run, or by hand."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Which rows sound alike (``megatron_af.retrieval``)."""

    stage: str = ""
    """Contrastive stage whose audio embedding decides; empty: nothing is indexed."""
    datasets: tuple[str, ...] = ()
    """Training splits to index for examples in prompts; those that ``neighbours`` name are indexed anyway."""


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where models are released: the MLflow registry of the tracking server."""

    model: str = ""
    """Registered name; empty: the run's name."""
    gates: str = ""
    """YAML file of the promotion gates, from the working folder or from ``configs/``."""


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """A pipeline step around the stages: preparation, retrieval index, release."""

    run: tuple[str, ...] = ()
    """Command behind ``python``; ``{config}`` stands for the file with the run's resolved configuration."""
    after: tuple[str, ...] = ()
    """Steps and stages it waits for (``stages``: all, trained and measured). Empty: every stage waits for it."""
    before: tuple[str, ...] = ()
    """Stages that wait for it, where it stands between two of them."""
    distributed: bool = False
    """Runs under torchrun on the nodes of a training job, as the stages do."""


def release_steps() -> dict[str, StepConfig]:
    """The steps every curriculum has; a YAML file changes or adds single ones by name."""
    return {
        "prepare": StepConfig(run=("tools/prepare_data.py", "prepare", "--config", "{config}")),
        "register": StepConfig(run=("tools/promote.py", "register", "--config", "{config}"), after=("stages",)),
        "gate": StepConfig(run=("tools/promote.py", "gate", "--config", "{config}"), after=("register",)),
        "promote": StepConfig(run=("tools/promote.py", "promote", "--config", "{config}"), after=("gate",)),
    }


RETRIEVAL_STEP = "retrieval"


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """One manifest of mixed scenes, ``data.root/NAME.jsonl``."""

    part: Literal["train", "development", "test"]
    """Which part of the recordings its scenes are mixed from."""
    scenes: Count
    min_seconds: Positive = 10.0
    """Length of a scene, drawn between this and ``max_seconds``."""
    max_seconds: Positive = 10.0
    min_events: Count = 2
    max_events: Count = 5
    questions: Whole = 12
    """Questions written per scene; training scenes are listed and described as well."""


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """What `tools/demo.py` mixes out of free recordings (nothing else reads it)."""

    offline: bool = False
    """Synthesise the sources without asking any package archive."""
    variants: Whole = 12
    """Augmented versions of each training recording."""
    kinds: tuple[str, ...] = ()
    """Kinds of sound that scenes are mixed of; empty: all there are."""
    texts: Whole = 0
    """Text-only rows: transcripts of scenes that nobody hears, with questions about them."""
    sets: dict[str, SceneSet] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. ``stage`` picks what `tools/pretrain_af.py` trains out of ``curriculum``."""

    name: str
    seed: Seed = 0
    output: str = "runs"
    """Everything a run writes lies in ``output/name``."""
    precision: Literal["bf16", "fp32"] = "bf16"
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: dict[str, StageConfig] = field(default_factory=dict)
    """Stage name -> stage, in the order they run."""
    stage: str = ""
    steps: dict[str, StepConfig] = field(default_factory=release_steps)
    """Step name -> what the pipeline does before, between and after the stages."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    log_every_steps: Count = 10

    def all_steps(self) -> dict[str, StepConfig]:
        """``steps`` and, where something is indexed, ``retrieval``: after the stage whose embedding decides, before
        the stages that learn from neighbours."""
        if not self.retrieval.stage or RETRIEVAL_STEP in self.steps:
            return self.steps
        made = {name for name, dataset in self.data.datasets.items() if dataset.neighbours}
        step = StepConfig(
            run=("tools/build_retrieval.py", "interleave", "--config", "{config}"),
            after=(self.retrieval.stage,),
            before=tuple(name for name, stage in self.curriculum.items() if made & stage.blend.keys()),
            distributed=True,
        )
        return {**self.steps, RETRIEVAL_STEP: step}

    def stage_folder(self, stage: str) -> Path:
        """Everything that a stage of this run writes lies here."""
        return Path(self.output) / self.name / stage

    def sample_tokens(self, stage: StageConfig) -> int:
        """Audio and text tokens of a sample at its longest."""
        return stage.max_windows * self.model.encoder.tokens_per_window + stage.max_text_tokens

    def step_unit(self, stage: StageConfig, world_size: int) -> int:
        """Samples that a global batch is a multiple of: one micro-batch on every data-parallel rank.

        The interleaved schedule takes micro-batches in groups of ``parallel.pipeline``.
        """
        parallel = self.parallel
        group = parallel.pipeline if parallel.virtual_pipeline > 1 else 1
        return world_size // (parallel.tensor * parallel.pipeline) * stage.micro_batch_samples * group
