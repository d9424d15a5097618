"""The released encoder of Audio Flamingo 1: ``clapcap_weights_2023.pth`` of Microsoft's CLAP, read into ours.

    load_clapcap(model.front.encoder, clapcap_weights(Path("clapcap_weights_2023.pth")))

Names: ``ClapCaptionModel`` of msclap (``models/mapper.py``), whose attribute ``clap`` is the audio tower.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

PLACES = {"projection.": "clap.projection.", "": "clap.base.htsat."}
"""What our names begin with -> theirs."""
OPTIONAL = ("spectrogram_extractor.", "logmel_extractor.", "bn0.num_batches_tracked")
"""What nothing here computes with, and the file need not hold."""


def clapcap_weights(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        ValueError: the file holds no such model.
    """
    held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights: dict[str, Tensor] = held.get("model", held) if isinstance(held, dict) else {}
    if not any(name.startswith("clap.base.htsat.") for name in weights):
        raise ValueError(f"{path}: expected ClapCap's weights, with names that begin with clap.base.htsat., got none")
    return weights


def load_clapcap(encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill the encoder, its running statistics included.

    Raises:
        ValueError: it is another encoder: a tensor is missing, or has another shape.
    """
    with torch.no_grad():
        for name, tensor in encoder.state_dict(keep_vars=True).items():
            own, theirs = next(place for place in PLACES.items() if name.startswith(place[0]))
            found = weights.get(theirs + name.removeprefix(own))
            if found is None and name.startswith(OPTIONAL):
                continue
            if found is None or found.shape != tensor.shape:
                got = "none" if found is None else f"one of {tuple(found.shape)}"
                raise ValueError(
                    f"encoder.{name}: expected a tensor of shape {tuple(tensor.shape)} in ClapCap's weights, got {got}"
                    "; set model.front_end and model.encoder as configs/model/clapcap.yaml does"
                )
            tensor.copy_(found)
