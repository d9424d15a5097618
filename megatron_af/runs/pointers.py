"""Weights that a checkpoint does not hold itself: where they lie, and that they are the ones it was made with.

    source = source_of(checkpoint, "lm")            # the checkpoint that holds these very weights

A part that a stage does not train is not copied into its checkpoints. The manifest (``checkpoint.json``) points at the
one that holds it, by path and by digest:

    "parts": {"xattn": ".", "lm": "../../../lm/checkpoints/step_00000300"}, "digests": {"lm": "sha256:…"}

The path says where to look first, the digest what is meant. A stage that is trained again leaves what others point at
where it was put aside, and there it is found by its digest, as it is in a release, which carries it along; weights of
another digest are never taken instead.
"""

import itertools
from contextlib import suppress
from pathlib import Path

from megatron_af.foreign import ForeignError
from megatron_af.runs.digests import (
    DIGEST_FILE,
    DigestMismatch,
    digest_file,
    record_digest,
    recorded_digest,
    verify_digest,
)
from megatron_af.runs.paths import MANIFEST, CheckpointError, read_manifest

SOURCES = "sources"
"""In a release: the checkpoints that hold parts of the others."""


def source_of(checkpoint: Path, part: str) -> Path:
    """The checkpoint that holds the weights of a part, as ``checkpoint``'s manifest tells.

    Raises:
        CheckpointError: it has no such part, or the weights that it means are neither there nor anywhere beside.
    """
    manifest = read_manifest(checkpoint)
    parts, digest = manifest["parts"], manifest.get("digests", {}).get(part, "")
    if part not in parts:
        raise CheckpointError(
            f"checkpoint {checkpoint} holds {', '.join(parts)} but no {part}; take {part} from another one in the "
            "stage's `entry`"
        )
    source: Path = (checkpoint / parts[part]).resolve()
    if not digest or _has(source, digest):
        return source
    output, release = _above(source, 3), _above(checkpoint.resolve(), 2)
    held = release.glob(f"{SOURCES}/*/{DIGEST_FILE}")
    for found in itertools.chain(held, output.glob(f"*/*/checkpoints/*/{DIGEST_FILE}")):
        if _has(found.parent, digest):
            return found.parent
    state = "holds other weights by now" if (source / MANIFEST).is_file() else "is gone"
    raise CheckpointError(
        f"checkpoint {checkpoint} takes {part} from {source}, which {state}, and no checkpoint below "
        f"{output} has the digest {digest}: bring it back, or train the stage of {checkpoint} again"
    )


def holds(checkpoint: Path, part: str) -> bool:
    """Whether a checkpoint offers a part, in its own files or another one's."""
    return part in read_manifest(checkpoint)["parts"]


def checkpoint_digest(checkpoint: Path) -> str:
    """Digest of a checkpoint's files, written beside them the first time it is asked for."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; correct the stage's entry")
    if checkpoint.is_file():
        return digest_file(checkpoint)
    return recorded_digest(checkpoint) if (checkpoint / DIGEST_FILE).is_file() else record_digest(checkpoint)


def verify(checkpoint: Path) -> None:
    """Read a checkpoint's files and compare them with its recorded digest; recorded now where there is none.

    Raises:
        CheckpointError: they are not what was recorded.
    """
    try:
        if (checkpoint / DIGEST_FILE).is_file():
            verify_digest(checkpoint)
        else:
            record_digest(checkpoint)
    except DigestMismatch as error:
        raise CheckpointError(str(error)) from error


def is_pointed_at(checkpoint: Path, output: Path) -> bool:
    """Whether a checkpoint of any run below ``output`` takes weights from this one."""
    digest = recorded_digest(checkpoint) if (checkpoint / DIGEST_FILE).is_file() else ""
    for other in output.glob(f"*/*/checkpoints/*/{MANIFEST}"):
        if other.parent == checkpoint:
            continue
        with suppress(FileNotFoundError, CheckpointError, ForeignError, DigestMismatch):  # just pruned, or damaged
            manifest = read_manifest(other.parent)
            digests = manifest.get("digests", {})
            for part, place in manifest["parts"].items():
                if place == ".":
                    continue
                if digests.get(part) == digest if part in digests else (other.parent / place).resolve() == checkpoint:
                    return True
    return False


def _above(path: Path, levels: int) -> Path:
    return path.parents[min(levels, len(path.parents) - 1)]


def _has(folder: Path, digest: str) -> bool:
    try:
        return (folder / MANIFEST).is_file() and recorded_digest(folder) == digest
    except DigestMismatch:  # a damaged one has nothing to give
        return False
