"""Published encoders, read into ours: ClapCap, LAION-CLAP and AF-CLAP.

    encoder = EncoderFile(pickled_weights(path), str(path))         # clapcap_weights_2023.pth, epoch_16.pt
    report = encoder.load(model.front.encoder)                      # which tensors were used, which not and why

Names: ``ClapCaptionModel`` of msclap (``models/mapper.py``), whose attribute ``clap`` is the audio tower; ``CLAP`` of
laion_clap (``clap_module/model.py``), which AF-CLAP's training code has taken over; ``ClapModel`` of transformers,
whose folders ``clap_folder.py`` reads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from megatron_af.convert.keys import KeyReport
from megatron_af.convert.shards import Held


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the two parts of an encoder lie."""

    encoder: str
    projection: str
    model: str
    """Section of ``configs/`` that describes it."""
    renamed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Part of one of our names -> what stands in its place, several where ours is made of theirs, one after another."""


TRANSFORMERS = {
    r"^bn0\.": ("batch_norm.",),
    r"\.norm1\.": (".layernorm_before.",),
    r"\.norm2\.": (".layernorm_after.",),
    r"\.attn\.qkv\.": (".attention.self.query.", ".attention.self.key.", ".attention.self.value."),
    r"\.attn\.proj\.": (".attention.output.dense.",),
    r"\.attn\.rel": (".attention.self.rel",),
    r"\.mlp\.fc1\.": (".intermediate.dense.",),
    r"\.mlp\.fc2\.": (".output.dense.",),
    r"^projection\.0\.": ("projection.linear1.",),
    r"^projection\.2\.": ("projection.linear2.",),
}
LAYOUTS = (
    Layout(encoder="clap.base.htsat.", projection="clap.projection.", model="configs/model/clapcap.yaml"),
    Layout(encoder="audio_branch.", projection="audio_projection.", model="configs/model/laion_clap.yaml"),
    Layout(
        encoder="audio_model.audio_encoder.",
        projection="audio_projection.",
        model="configs/model/laion_clap.yaml",
        renamed=TRANSFORMERS,
    ),
)
OPTIONAL = r"(spectrogram|logmel)_extractor\.|num_batches_tracked$"
"""What nothing here computes with, and the file need not hold."""


class EncoderFile:
    """
    Raises:
        ValueError: the file is of another kind.
    """

    def __init__(self, weights: Mapping[str, Tensor], where: str = "weights") -> None:
        self._weights, self._where = weights, where
        found = [layout for layout in LAYOUTS if any(name.startswith(layout.encoder) for name in weights)]
        if not found:
            known = " or ".join(layout.encoder for layout in LAYOUTS)
            raise ValueError(
                f"{where}: expected the weights of ClapCap, LAION-CLAP or AF-CLAP, with names that begin with {known}, "
                f"got {next(iter(weights))}"
            )
        self._layout = found[0]

    def load(self, encoder: nn.Module) -> KeyReport:
        """Fill the encoder, its running statistics included.

        Raises:
            ValueError: it is another encoder: a tensor is missing, or has another shape.
        """
        state = encoder.state_dict(keep_vars=True)
        hint = f"model.front_end and model.encoder; {self._layout.model} sets the published ones"
        report = KeyReport.of(self._weights, [part for name in state for part in self._theirs(name)], optional=OPTIONAL)
        report.check(self._where, hint)
        with torch.no_grad():
            for name, tensor in state.items():
                theirs = [part for part in self._theirs(name) if part in self._weights]
                parts = [Held(self._where, part, self._weights[part])[...] for part in theirs]
                if parts:
                    found = torch.cat(parts) if len(parts) > 1 else parts[0]
                    if found.shape != tensor.shape:
                        raise ValueError(
                            f"encoder.{name}: expected shape {tuple(tensor.shape)} from the configuration, "
                            f"{self._where} has {tuple(found.shape)}; check {hint}"
                        )
                    tensor.copy_(found)
        return report

    def _theirs(self, name: str) -> tuple[str, ...]:
        """Names in the file of what one of our tensors is made of."""
        projection = name.startswith("projection.")
        before = self._layout.projection if projection else self._layout.encoder
        names: tuple[str, ...] = (name,)
        for pattern, others in self._layout.renamed.items():
            if re.search(pattern, name):
                names = tuple(re.sub(pattern, other, name) for other in others)
        return tuple(before + one.removeprefix("projection.") for one in names)
