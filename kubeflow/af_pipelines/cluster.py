"""Typed schema of ``configs/cluster/*.yaml``: where a pipeline runs and what each step gets there.

    cluster = load_cluster("configs/cluster/gpu.yaml", ["image=…"])
    cluster.placement("align", stage=True).nodes

Nothing secret stands in these files: ``secrets`` names Kubernetes Secrets, and the endpoint's token comes from the
environment.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import field
from datetime import timedelta
from pathlib import Path

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import read_values
from megatron_af.pipeline.graph import measure_step, pipeline_steps
from megatron_af.runs.check import check
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.presence import is_hub_name

ORPHAN = timedelta(hours=2)
"""Without a heartbeat for this long a job has lost its pipeline, and the reaper deletes it. Far above what a step waits
for an API server, and above what a retried step takes to come back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What one step gets."""

    nodes: int = 1
    processes: int = 1
    """Processes per node: one per GPU, or what the CPU's cores allow."""
    cpu: str = ""
    """CPU of a node in Kubernetes' notation (``16``, ``500m``); empty: what the runtime gives."""
    memory: str = ""
    """Memory of a node (``64Gi``)."""
    devices: dict[str, int] = field(default_factory=dict)
    """Extended resources of a node: ``nvidia.com/gpu: 8``, ``rdma/hca: 8``."""
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerate: tuple[str, ...] = ()
    """Taint keys that the pods tolerate, such as ``nvidia.com/gpu``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Volume:
    """A persistent volume claim in every pod of the pipeline."""

    claim: str
    mount: str
    read_only: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecretKey:
    """One value out of a Kubernetes Secret of the namespace."""

    secret: str
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """One cluster, or this machine."""

    endpoint: str = ""
    """Address of the Kubeflow Pipelines API; empty: ``$KF_PIPELINES_ENDPOINT``."""
    namespace: str = "megatron-af"
    service_account: str = "af-pipeline"
    """Account of the pipeline's own pods, which create and watch the training jobs."""
    image: str = "megatron-af:latest"
    """Image of every step: this project with its tools (``kubeflow/images``)."""
    image_pull_secrets: tuple[str, ...] = ()
    runtime: str = "megatron-af-v1"
    """ClusterTrainingRuntime of the training jobs (``kubeflow/manifests``)."""
    queue: str = ""
    """Kueue queue that admits the training jobs; empty: they start when the scheduler finds room."""
    priority: str = ""
    """Kueue workload priority class."""
    volumes: tuple[Volume, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, SecretKey] = field(default_factory=dict)
    """Environment variable -> where its value lies in the cluster."""
    overrides: tuple[str, ...] = ()
    """``key=value`` changes to the run's configuration on this cluster: where its volumes are mounted."""
    stages: Placement = field(default_factory=Placement)
    """What a stage, or another distributed step, gets that ``placements`` does not name."""
    others: Placement = field(default_factory=Placement)
    """What every other step gets."""
    placements: dict[str, Placement] = field(default_factory=dict)
    """Step or stage name -> what it gets instead."""
    max_restarts: int = 2
    """Restarts of a failed job on this machine; on a cluster the training runtime's failure policy counts them."""
    retries: int = 2
    """Retries of a step whose own pod is lost; it then finds its training job again."""
    deadline_hours: float = 168.0
    """Longest time that one step may be active. Trainer starts the clock again whenever a suspended job resumes, and
    time in a queue does not count."""
    pending_minutes: float = 60.0
    """Longest time that an admitted job's pods may wait for room, an image or a volume."""
    away_minutes: float = 30.0
    """How long a step waits for an API server that does not answer, while its training job goes on; at most half of
    the time after which the reaper takes the job for lost."""

    def placement(self, step: str, *, stage: bool) -> Placement:
        """What ``step`` gets."""
        return self.placements.get(step, self.stages if stage else self.others)


def load_cluster(path: str, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read a cluster file. Raises `ConfigError` with every problem found."""
    cluster = read_values(ClusterConfig, Path(path), overrides)
    problems = check_cluster(cluster)
    if problems:
        raise ConfigError(f"{path} cannot be used", problems)
    return cluster


_QUANTITY = re.compile(r"\d+(\.\d+)?([mkMGTPE]|[KMGTPE]i)?")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
LONGEST_STEP = 60
"""Kubernetes allows 63 characters in a label; a step's second job is called ``STEP-2``."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def check_cluster(cluster: ClusterConfig) -> list[str]:
    """Everything in a cluster file that Kubernetes would refuse later, each with its key and what to write."""
    problems = []
    named = {"stages": cluster.stages, "others": cluster.others}
    named |= {f"placements.{name}": placement for name, placement in cluster.placements.items()}
    for key, placement in named.items():
        for size, least in (("nodes", placement.nodes), ("processes", placement.processes)):
            if least < 1:
                problems.append(f"{key}.{size} is {least}: write 1 or more")
        for quantity in ("cpu", "memory"):
            value = getattr(placement, quantity)
            if value and not _QUANTITY.fullmatch(value):
                problems.append(f"{key}.{quantity} is {value!r}: write a Kubernetes quantity such as 16, 500m or 64Gi")
        gpus = placement.devices.get("nvidia.com/gpu", 0)
        if gpus and placement.processes != gpus:
            problems.append(
                f"{key}.processes is {placement.processes} for {gpus} GPUs a node: write {gpus}, one process per GPU"
            )
    for key in ("namespace", "service_account", "runtime"):
        value = getattr(cluster, key)
        if not _NAME.fullmatch(value):
            problems.append(f"{key} is {value!r}: write a Kubernetes name (lower case, digits, '-')")
    problems += [
        f"volumes: {volume.claim} is mounted at {volume.mount!r}: write an absolute path"
        for volume in cluster.volumes
        if not volume.mount.startswith("/")
    ]
    most = ORPHAN.total_seconds() / 120
    if not 0 < cluster.away_minutes <= most:
        problems.append(
            f"away_minutes is {cluster.away_minutes:g}: write at most {most:g}; a job that nobody has watched for "
            f"{2 * most:g} minutes is deleted"
        )
    problems += [
        f"env and secrets must leave {name} to the training runtime: remove it"
        for name in sorted(cluster.env.keys() | cluster.secrets.keys())
        if name.startswith("PET_")
    ]
    return problems


def check_placements(config: Config, cluster: ClusterConfig) -> list[str]:
    """Where a run does not fit on a cluster: unknown names, a model or batch that these processes cannot share."""
    known = {*config.curriculum, *map(measure_step, config.curriculum), *config.all_steps()}
    problems = [
        f"placements.{name}: the run has no such step; it has {', '.join(sorted(known))}"
        for name in cluster.placements
        if name not in known
    ]
    for stage in config.curriculum:
        placement = cluster.placement(stage, stage=True)
        found = check(dataclasses.replace(config, stage=stage), placement.nodes * placement.processes)
        where = f"stage {stage} on {placement.nodes} nodes x {placement.processes} processes: "
        problems += [where + problem for problem in found]
    return problems


def check_on_kubernetes(config: Config, cluster: ClusterConfig) -> list[str]:
    """What a Kubernetes cluster would refuse or miss of a run only when its turn comes: names that are no labels, and
    files that lie on none of its volumes."""
    problems = [
        f"{f'stage {spec.stage}' if spec.stage else f'steps.{spec.name}'}: its step {spec.name} has {len(spec.name)} "
        f"characters; Kubernetes takes up to {LONGEST_STEP} letters, digits, '-', '_' and '.', a letter or digit at "
        "both ends; rename it"
        for spec in pipeline_steps(config, "curriculum")
        if len(spec.name) > LONGEST_STEP or not _LABEL.fullmatch(spec.name)
    ]
    mounts = [Path(volume.mount) for volume in cluster.volumes]
    where = ", ".join(map(str, mounts)) or "none"
    problems += [
        f"{key} = {path}: on no volume of the cluster (mounted: {where}); put it on one, and name it there behind the "
        "command or in `overrides` of the cluster file"
        for key, path in _files(config).items()
        if not any(Path(path).is_relative_to(mount) for mount in mounts)
    ]
    return problems


def _files(config: Config) -> dict[str, str]:
    """Key -> path of what steps read and write; addresses, and what may be a name on the hub, are left out."""
    paths = {"output": config.output, "data.root": config.data.root, "data.feature_cache": config.data.feature_cache}
    named = {"data.tokenizer": config.data.tokenizer}
    for name, stage in config.curriculum.items():
        entries = {part: origin for part, origin in stage.entry.items() if origin not in config.curriculum}
        paths |= {f"curriculum.{name}.entry.{part}": origin for part, origin in entries.items()}
        named |= {f"{what} of stage {name}": path for what, path in spec_of(stage).files(config).items()}
    paths |= {key: path for key, path in named.items() if not is_hub_name(path)}
    return {key: path for key, path in paths.items() if path and "://" not in path}
