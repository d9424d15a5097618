"""What a plan must know of a GPU: memory, rates and links, from ``configs/gpus/NAME.yaml``.

    gpu = read_gpu("h100")

Every file says where its numbers come from. The rates are what large operations reach, not peaks: of a data sheet's
peak a fraction that others have published, or what ``tools/bench.py plan`` measured on this machine.
"""

from dataclasses import dataclass, field
from pathlib import Path

from megatron_af.config import ConfigError
from megatron_af.config.effects import Nothing
from megatron_af.config.errors import suggestion
from megatron_af.config.loading import CONFIGS, read_values
from megatron_af.config.ranges import Count, NotNegative, Positive

FOLDER = CONFIGS / "gpus"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Operations a second of one precision."""

    matmul: Nothing[Positive]
    """Of large matrix products."""
    attention: Nothing[Positive]
    """Of fused attention over long texts, forward and backward together."""
    half_rate_keys: Nothing[NotNegative] = 0.0
    """At so many keys attention reaches half of that rate (Hockney and Jesshope 1981, n 1/2): its kernels work in
    tiles, and those at the ends of a segment are not full."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: Nothing[str]
    memory_gib: Nothing[Positive]
    """What the device has."""
    reserved_gib: Nothing[NotNegative] = 0.0
    """Of it, what is never a tensor: context, kernels, workspaces of libraries, buffers of NCCL's channels."""
    fragments: Nothing[NotNegative] = 0.0
    """Part of the tensors' bytes that the allocator holds besides, in blocks that nothing fits into."""
    peak: Nothing[Positive]
    """Operations a second in bf16 by the data sheet, for the utilisation."""
    rates: Nothing[dict[str, Rates]] = field(default_factory=dict)
    """Precision -> rates."""
    copy: Nothing[Positive]
    """Bytes a second that an operation on single elements reads and writes."""
    launch_seconds: Nothing[NotNegative] = 0.0
    """Of every operation, however small."""
    per_node: Nothing[Count] = 8
    link: Nothing[Positive]
    """Bytes a second that a GPU sends to others of its node in a collective."""
    network: Nothing[Positive]
    """The same to GPUs of other nodes."""
    latency_seconds: Nothing[NotNegative] = 0.0
    """Of every collective."""
    fused: Nothing[bool] = True
    """There are fused kernels."""
    copies_to_reduce: Nothing[bool] = False
    """A reduce-scatter sums in a copy of its buffer, as gloo's does."""
    source: Nothing[str]
    """Where the numbers come from."""

    @property
    def usable_bytes(self) -> float:
        """For tensors."""
        return (self.memory_gib - self.reserved_gib) * 2**30 / (1 + self.fragments)

    def bandwidth(self, span: int) -> float:
        """Of a collective among ranks of which the first and the last are ``span`` apart."""
        return self.link if span <= self.per_node else self.network


def known_gpus() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_gpu(name: str) -> Gpu:
    """
    Args:
        name: a file of ``configs/gpus``, or the path of another one.

    Raises:
        ConfigError: there is none of that name.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name.lower()}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"--gpu {name}: no plan knows it{suggestion(name.lower(), known_gpus())}; or write a file like "
            f"configs/gpus/h100.yaml and give its path"
        )
    return read_values(Gpu, path)
