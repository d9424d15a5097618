"""Audio Flamingo on megatron-core: training, evaluation and release. Start reading at ``tools/pretrain_af.py``.

A trained model answers from Python, too, without torchrun:

    import megatron_af as af

    model = af.load("runs/demo")
    model.answer("dog.wav", "what is it?")

Importing the package costs nothing: torch comes with the first :func:`load`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_af.parallel.foreign_warnings import silence

if TYPE_CHECKING:
    from megatron_af.serve.loaded_model import LoadedModel
    from megatron_af.serve.settings import Precision

__all__ = ["load"]

silence()


def load(place: str | Path, *, precision: "Precision" = "") -> "LoadedModel":
    """A trained model, in this process, on its GPU where there is one.

    Args:
        place: folder of a run (``runs/demo``: its last stage that answers), of a stage (``runs/demo/long``: its newest
            checkpoint), of a checkpoint, or of a release.
        precision: ``fp32``, ``bf16`` or ``int8`` (the language model's linears; the rest is bf16). Default: as trained.

    Returns:
        What answers questions about recordings (``answer``, ``answers``) and, where the run has an AF-CLAP stage,
        embeds recordings and texts in one space (``embed``). Several models can be loaded side by side.

    Raises:
        FileNotFoundError: there is no such folder, or nothing trained in it.
        ConfigError: its configuration cannot be read.
        ValueError: there is no such precision.
    """
    from megatron_af.serve.loaded_model import LoadedModel

    return LoadedModel(place, precision=precision)
