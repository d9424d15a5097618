"""What a YAML file may say: the schema, with unit, range and effect of each field, and how files are read and merged.

A run is one top file (``configs/demo.yaml``, ``configs/af2_3b.yaml``) that includes section files (``configs/model/…``)
and may be changed from the command line by ``a.b.c=value``. Units stand in the names, the type says what numbers may be
there (``ranges.py``) and what follows from them (``effects.py``), a docstring under a field what it is for.

    config = load_config("configs/demo.yaml", ["stage=align", "parallel.tensor=2"])     # loading.py

The ground floor: everything imports it, it imports nothing of the house.
"""

from megatron_af.config.data import (
    DataConfig,
    DatasetConfig,
    DictionaryConfig,
    ImportConfig,
    MeritsConfig,
    NeighboursConfig,
    PartConfig,
    PrepareConfig,
)
from megatron_af.config.errors import ConfigError
from megatron_af.config.model import (
    LOWEST_TEMPERATURE,
    ClapConfig,
    CrossAttentionConfig,
    EncoderConfig,
    FrontEndConfig,
    LMConfig,
    ModelConfig,
    TransformConfig,
)
from megatron_af.config.run import (
    RETRIEVAL_STEP,
    CheckpointConfig,
    Config,
    EvaluationConfig,
    JudgeConfig,
    LaunchConfig,
    ParallelConfig,
    RegistryConfig,
    RetrievalConfig,
    ScenesConfig,
    SceneSet,
    StepConfig,
    TrackingConfig,
    release_steps,
)
from megatron_af.config.stage import (
    AugmentConfig,
    BoundsConfig,
    ContrastiveConfig,
    LoRAConfig,
    OptimizerConfig,
    SpikesConfig,
    StageConfig,
    WatchConfig,
)

__all__ = [
    "LOWEST_TEMPERATURE",
    "RETRIEVAL_STEP",
    "AugmentConfig",
    "BoundsConfig",
    "CheckpointConfig",
    "ClapConfig",
    "Config",
    "ConfigError",
    "ContrastiveConfig",
    "CrossAttentionConfig",
    "DataConfig",
    "DatasetConfig",
    "DictionaryConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FrontEndConfig",
    "ImportConfig",
    "JudgeConfig",
    "LMConfig",
    "LaunchConfig",
    "LoRAConfig",
    "MeritsConfig",
    "ModelConfig",
    "NeighboursConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PartConfig",
    "PrepareConfig",
    "RegistryConfig",
    "RetrievalConfig",
    "SceneSet",
    "ScenesConfig",
    "SpikesConfig",
    "StageConfig",
    "StepConfig",
    "TrackingConfig",
    "TransformConfig",
    "WatchConfig",
    "release_steps",
]
