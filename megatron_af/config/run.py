"""One run: everything a top file says."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_af.config.data import DataConfig
from megatron_af.config.effects import Answers, Files, Nothing, Rounding, Weights
from megatron_af.config.model import ModelConfig
from megatron_af.config.ranges import Count, Fraction, NotNegative, Positive, Seed, Whole
from megatron_af.config.stage import LoRAConfig, StageConfig

RETRIEVAL_STEP = "retrieval"


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model lies on the ranks; data parallel is what remains of the world."""

    tensor: Rounding[Count] = 1
    pipeline: Rounding[Count] = 1
    virtual_pipeline: Rounding[Count] = 1
    """Model chunks per pipeline stage (interleaved schedule when above 1)."""
    sequence: Rounding[bool] = False
    """Sequence parallelism inside the tensor-parallel group."""
    distributed_optimizer: Rounding[bool] = False
    """Shard optimizer state over data-parallel ranks (ZeRO-1)."""
    overlap: Rounding[bool] = False
    """Overlap gradient reduction (and parameter gathering under ZeRO-1) with the backward pass."""
    recompute: Rounding[Literal["none", "selective", "full"]] = "none"
    """Activation recompute of the LM: ``none``, ``selective`` (core attention) or ``full``."""

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it, with its fix; ``key``: where it stands, ``parallel``."""
        if self.virtual_pipeline > 1 and self.pipeline < 2:
            yield (
                f"{key}.virtual_pipeline = {self.virtual_pipeline} needs {key}.pipeline of at least 2; "
                "set virtual_pipeline to 1"
            )
        if self.sequence and self.tensor < 2:
            yield f"{key}.sequence shards over the tensor-parallel group: set it to false or {key}.tensor above 1"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: Nothing[Whole] = 0
    """0: only at the end of the stage."""
    keep: Nothing[Whole] = 2
    """Newest checkpoints kept per stage; the last one of a stage always stays, and so does one that a later stage or
    another run below ``output`` reads its frozen parts from. 0: all."""
    asynchronous: Nothing[bool] = False
    agree_every_steps: Nothing[Whole] = 0
    """Every so many steps, and before each checkpoint on the way, ranks that hold the same weights compare their bits:
    what differs ends the job before it is saved. 0: never."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A language model that judges answers, behind an OpenAI-compatible endpoint."""

    endpoint: Nothing[str] = ""
    """Base address, such as ``http://localhost:8000/v1``; the key, if it needs one, stands in ``OPENAI_API_KEY``.
    Empty: nothing is judged."""
    model: Answers[str] = ""
    concurrency: Nothing[Count] = 8
    requests_per_minute: Nothing[Positive] = 300.0
    timeout_seconds: Nothing[Positive] = 120.0


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the answers of a stage are measured (``tools/evaluate.py``)."""

    max_answer_tokens: Answers[Count] = 32
    """Longer answers are cut; a batch is only as slow as its longest answer."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sentence_model: Answers[str] = ""
    """Sentence-BERT that says which labels are the same (``f1_approx``), a folder or hub name."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How many processes torchrun starts for a stage."""

    nodes: Rounding[Count] = 1
    processes_per_node: Rounding[Count] = 1
    """One per GPU, or what the CPU's cores allow."""
    hang_seconds: Nothing[NotNegative] = 1800.0
    """When a stage's step, with its data and checkpoint, takes longer, every process writes its stacks to the stage's
    folder ``hang`` and ends, worth another try; 0: it may take for ever."""
    ignore_plan: Nothing[bool] = False
    """Start although the plan (``tools/plan.py``) says that the GPU's memory does not suffice."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are followed; MLflow's own variables (user, password, token, certificates) apply."""

    enabled: Nothing[bool] = True
    """Off: what is logged stays on disk, for reports; ``python -m megatron_af.tracking RUN`` sends it after all."""
    uri: Nothing[str] = ""
    """MLflow tracking server, without a password; empty: ``$MLFLOW_TRACKING_URI``, or else the sqlite store in
    ``output/mlflow``."""
    experiment: Nothing[str] = ""
    """Empty: the run's name."""
    alone: Nothing[bool] = True
    """A stage run on its own ends the parent run, too; a curriculum or pipeline turns this off and ends it itself."""
    system_metrics_seconds: Nothing[NotNegative] = 10.0
    """Between two samples of processor, memory, disk, network and GPU; 0: none."""
    linger_seconds: Nothing[NotNegative] = 60.0
    """How long delivery goes on after a job has ended; what is left is sent by the next run, or by hand."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Which rows sound alike (``megatron_af.retrieval``)."""

    stage: Files[str] = ""
    """Contrastive stage whose audio embedding decides. Neither it nor ``encoder``: nothing is indexed."""
    encoder: Files[str] = ""
    """In place of a stage: folder of a LAION-CLAP as Hugging Face lays it out (``laion/clap-htsat-fused``), which says
    itself how it hears."""
    datasets: Files[tuple[str, ...]] = ()
    """Training splits to index for examples in prompts; those that ``neighbours`` name are indexed anyway."""
    index: Files[Literal["auto", "flat", "ivf", "ivf_pq", "hnsw"]] = "auto"
    """``flat`` compares every clip, ``ivf`` those in the nearest cells, ``ivf_pq`` does with a third of the memory, and
    ``hnsw`` follows a graph (docs/retrieval.md). ``auto``: flat up to 200,000 clips, ivf above."""
    recall: Files[Fraction] = 0.97
    """Part of the 8 nearest that a search finds which does not compare all."""
    shard_clips: Files[Count] = 4_000_000
    """Clips whose index is built in memory at a time; more make several shards, which searches read from the disk."""

    @property
    def indexes(self) -> bool:
        """Whether anything says which rows sound alike."""
        return bool(self.stage or self.encoder)


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """Where models are released: the MLflow registry of the tracking server."""

    model: Nothing[str] = ""
    """Registered name; empty: the run's name."""
    gates: Nothing[str] = ""
    """YAML file of the promotion gates, from the working folder or from ``configs/``."""


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """A pipeline step around the stages: preparation, retrieval index, release."""

    run: Files[tuple[str, ...]] = ()
    """Command behind ``python``; ``{config}`` stands for the file with the run's resolved configuration."""
    after: Nothing[tuple[str, ...]] = ()
    """Steps and stages it waits for (``stages``: all, trained and measured). Empty: every stage waits for it."""
    before: Nothing[tuple[str, ...]] = ()
    """Stages that wait for it, where it stands between two of them."""
    distributed: Nothing[bool] = False
    """Runs under torchrun on the nodes of a training job, as the stages do."""


def release_steps() -> dict[str, StepConfig]:
    """The steps every curriculum has; a YAML file changes or adds single ones by name."""
    return {
        "prepare": StepConfig(run=("tools/prepare_data.py", "prepare", "--config", "{config}")),
        "register": StepConfig(run=("tools/promote.py", "register", "--config", "{config}"), after=("stages",)),
        "gate": StepConfig(run=("tools/promote.py", "gate", "--config", "{config}"), after=("register",)),
        "promote": StepConfig(run=("tools/promote.py", "promote", "--config", "{config}"), after=("gate",)),
    }


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """One manifest of mixed scenes, ``data.root/NAME.jsonl``."""

    part: Files[Literal["train", "development", "test"]]
    """Which part of the recordings its scenes are mixed from."""
    scenes: Files[Count]
    min_seconds: Files[Positive] = 10.0
    """Length of a scene, drawn between this and ``max_seconds``."""
    max_seconds: Files[Positive] = 10.0
    min_events: Files[Whole] = 1
    """0: a scene may be nothing but its background noise."""
    max_events: Files[Whole] = 5
    questions: Files[Whole] = 12
    """Questions written per scene; training scenes are listed and described as well."""


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """What `tools/demo.py` mixes out of free recordings (nothing else reads it)."""

    offline: Files[bool] = False
    """Synthesise the sources without asking any package archive."""
    variants: Files[Whole] = 12
    """Augmented versions of each training recording."""
    kinds: Files[tuple[str, ...]] = ()
    """Kinds of sound that scenes are mixed of; empty: all there are."""
    texts: Files[Whole] = 0
    """Text-only rows: transcripts of scenes that nobody hears, with questions about them."""
    skills: Files[bool] = False
    """Write ``NAME_skills`` as well: the same scenes asked what AudioSkills' and LongAudio's generators ask."""
    sets: dict[str, SceneSet] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. ``stage`` picks what `tools/pretrain_af.py` trains out of ``curriculum``."""

    name: Nothing[str]
    seed: Weights[Seed] = 0
    output: Nothing[str] = "runs"
    """Everything a run writes lies in ``output/name``."""
    precision: Weights[Literal["bf16", "fp32"]] = "bf16"
    layers: Rounding[Literal["", "te", "torch"]] = ""
    """Linears and norms of the decoder: ``te``, Transformer Engine's with its fused kernels, or ``torch``, those that a
    CPU has. Empty: Transformer Engine's where there is a GPU and it imports."""
    compile: Rounding[bool] = False
    """Train the decoder's layers as ``torch.compile`` makes them: what lies between two matrix products becomes one
    kernel. The first step waits for the compiler, texts of other lengths do not. Not with ``parallel.overlap``."""
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: dict[str, StageConfig] = field(default_factory=dict)
    """Stage name -> stage, in the order they run."""
    stage: Nothing[str] = ""
    steps: dict[str, StepConfig] = field(default_factory=release_steps)
    """Step name -> what the pipeline does before, between and after the stages."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    log_every_steps: Nothing[Count] = 10

    def all_steps(self) -> dict[str, StepConfig]:
        """``steps`` and, where something is indexed, ``retrieval``: after the stage whose embedding decides, or after
        preparation where a published encoder does, and before the stages that learn from neighbours."""
        if not self.retrieval.indexes or RETRIEVAL_STEP in self.steps:
            return self.steps
        waits_for = self.retrieval.stage or ("prepare" if "prepare" in self.steps else "")
        made = {name for name, dataset in self.data.datasets.items() if dataset.neighbours}
        step = StepConfig(
            run=("tools/build_retrieval.py", "interleave", "--config", "{config}"),
            after=(waits_for,) if waits_for else (),
            before=tuple(name for name, stage in self.curriculum.items() if made & stage.blend.keys()),
            distributed=True,
        )
        return {**self.steps, RETRIEVAL_STEP: step}

    def hears(self, stage: str) -> set[str]:
        """Data sets whose recordings a stage hears: what it learns from and is looked at by, what examples in its rows
        are of, and what is indexed by its embedding."""
        settings, datasets = self.curriculum[stage], self.data.datasets
        named = {*settings.blend, *settings.evaluation, settings.watch.dataset, settings.calibrate} - {""}
        indexed = {*self.retrieval.datasets} if self.retrieval.stage == stage else set[str]()
        for name, dataset in datasets.items():
            if dataset.neighbours and (name in named or self.retrieval.stage == stage):
                indexed.add(dataset.neighbours.of)
        return named | indexed

    @property
    def lora(self) -> LoRAConfig | None:
        """Adapters of the model of ``stage``."""
        return self.curriculum[self.stage].lora if self.stage in self.curriculum else None

    def stage_folder(self, stage: str) -> Path:
        """Everything that a stage of this run writes lies here."""
        return Path(self.output) / self.name / stage

    def sample_tokens(self, stage: StageConfig, clips: int = 1) -> int:
        """Audio and text tokens of a sample at its longest: all of its questions, and all clips that its row brings.

        ``clips`` is the most that a row of the data has; rows made of neighbours have one for each example.
        """
        made = [self.data.datasets[name].neighbours for name in stage.blend if name in self.data.datasets]
        clips = max(clips, *(neighbours.examples + 1 for neighbours in made if neighbours), 1)
        audio = clips * stage.max_windows * self.model.encoder.tokens_per_window
        return audio + stage.questions_per_sample * stage.max_text_tokens

    def step_unit(self, stage: StageConfig, world_size: int) -> int:
        """Samples that a global batch is a multiple of: one micro-batch on every data-parallel rank.

        The interleaved schedule takes micro-batches in groups of ``parallel.pipeline``.
        """
        parallel = self.parallel
        group = parallel.pipeline if parallel.virtual_pipeline > 1 else 1
        return world_size // (parallel.tensor * parallel.pipeline) * stage.micro_batch_samples * group
