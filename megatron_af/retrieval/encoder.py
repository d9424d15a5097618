"""What says which rows sound alike: a contrastive stage of the run, or a published CLAP (``retrieval.encoder``).

    embedder = embedder_of(config)                      # a process group exists
    audio_NJ = embedder.audio(rows)                     # unit vectors of length joint_dim(config)
    digest = encoder_digest(config)                     # what they follow from, besides the sound

N rows, J joint dim.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_af.config import Config
from megatron_af.runs.digests import digest_files, digest_value
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import resolve_entry
from megatron_af.runs.pointers import checkpoint_digest, source_of

if TYPE_CHECKING:
    from megatron_af.convert.clap_folder import ClapFolder
    from megatron_af.inference.embedder import AudioEmbedder

FORMAT = 1
"""Part of every digest of embeddings; raised when their making changes."""


def embedder_of(config: Config) -> "AudioEmbedder":
    """
    Raises:
        FileNotFoundError: the stage has no checkpoint, or the folder is not there, or not whole.
        ForeignError: the folder holds something else.
    """
    # Imported only now, as below: whether an index is stale is answered at once, without torch.
    from megatron_af.inference.embedder import ClapEmbedder, PublishedEmbedder

    if config.retrieval.encoder:
        return PublishedEmbedder(config, _published(config))
    return ClapEmbedder(replace(config, stage=config.retrieval.stage))


def joint_dim(config: Config) -> int:
    """Length of an embedding. Raises as `embedder_of`."""
    if config.retrieval.encoder:
        return _published(config).model.clap.joint_dim
    return config.model.clap.joint_dim


def encoder_digest(config: Config) -> str:
    """Digest of all that an embedding follows from, besides the sound. Raises as `embedder_of`."""
    stage, model = config.retrieval.stage, config.model
    if config.retrieval.encoder:
        from megatron_af.inference.embedder import PublishedEmbedder

        folder = _published(config)
        of_files = _digests(folder.folder, tuple((name, *_changed(folder.folder / name)) for name in folder.files))
        return digest_value([FORMAT, of_files, folder.model, PublishedEmbedder.MAX_WINDOWS])
    checkpoint = resolve_entry(replace(config, stage=stage), stage)
    weights = [checkpoint_digest(source_of(checkpoint, part)) for part in spec_of(config.curriculum[stage]).parts]
    settings = [model.front_end, model.encoder, model.clap, config.curriculum[stage].max_windows, config.precision]
    return digest_value([FORMAT, weights, settings])


def _published(config: Config) -> "ClapFolder":
    from megatron_af.convert.clap_folder import ClapFolder

    return ClapFolder(Path(config.retrieval.encoder))


def _changed(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8)
def _digests(folder: Path, files: tuple[tuple[str, int, int], ...]) -> dict[str, str]:
    """Of files as they are now: read once in a process, for the weights have hundreds of megabytes."""
    return digest_files(folder, [name for name, _, _ in files])
