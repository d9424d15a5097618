"""What became of every tensor of a file that somebody else published.

    report = KeyReport.of(held, wanted, aliases)
    print(report)                                   # 812 used; 400 aliases; 24 ignored (12: …, 12: …)

Each is used, is an alias of a used one, is ignored for a known reason, or is unknown; unknown ones and missing ones are
errors: the file is of another model than the configuration.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from megatron_af.foreign import file_at

REASONS = {
    r"relative_position_index$|attn_mask$|\.position_ids$": "indices and masks, computed here",
    r"inv_freq$|\.freqs$|(cos|sin)_cached$": "positions, computed here in float32",
    r"num_batches_tracked$": "a counter of training",
    r"(spectrogram|logmel)_extractor\.": "filters of the mel, which DALI makes",
    r"(^|\.)(tscam_conv|head)\.": "head of the encoder's own training, not heard through",
    r"patch_embed\.(mel_conv2d|fusion_model)\.": "feature fusion, for clips in views",
    r"(text_(branch|model|transform|projection)|caption_encoder)\.": "text tower, named by model.clap.text_tower",
    r"(audio_projection|audio_transform)\.": "joint space of contrastive training",
    r"logit_scale(_[at])?$": "temperature of contrastive training",
    r"^(gpt|clap_project)\.": "ClapCap's own captioner",
}
"""Pattern of a key that nothing here computes with -> why."""


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    used: tuple[str, ...]
    aliases: tuple[str, ...]
    """Second names of used ones."""
    ignored: dict[str, str]
    """Key -> why."""
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @classmethod
    def of(
        cls,
        held: Iterable[str],
        wanted: Iterable[str],
        aliases: Callable[[str], tuple[str, ...]] = lambda name: (),
        optional: str = r"$^",
    ) -> Self:
        """
        Args:
            held: keys of the file.
            wanted: keys that the model is filled from, by their first names.
            aliases: other names of one.
            optional: pattern of wanted ones that the file need not hold.
        """
        left = dict.fromkeys(held)
        used, seconds, missing = [], [], []
        for name in wanted:
            found = [one for one in (name, *aliases(name)) if one in left]
            if found:
                used.append(found[0])
                seconds += found[1:]
            elif not re.search(optional, name):
                missing.append(name)
            for one in found:
                del left[one]
        ignored = {key: reason for key in left for pattern, reason in REASONS.items() if re.search(pattern, key)}
        return cls(
            used=tuple(used),
            aliases=tuple(seconds),
            ignored=ignored,
            missing=tuple(missing),
            unknown=tuple(key for key in left if key not in ignored),
        )

    def check(self, where: str, hint: str) -> None:
        """
        Args:
            where: the file.
            hint: which keys of the configuration to look at.

        Raises:
            ValueError: a tensor is missing, or nobody knows what one is for.
        """
        for keys, what in ((self.missing, "are missing"), (self.unknown, "belong to no part of this model")):
            if keys:
                shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
                raise ValueError(f"{where}: {len(keys)} tensors {what}: {shown}; check {hint}")

    def __str__(self) -> str:
        reasons = ", ".join(f"{count}: {reason}" for reason, count in Counter(self.ignored.values()).items())
        why = f" ({reasons})" if reasons else ""
        return f"{len(self.used)} tensors used; {len(self.aliases)} aliases; {len(self.ignored)} ignored{why}"


def pickled_weights(path: Any) -> dict[str, torch.Tensor]:
    """State of a model in a file of torch, wherever in it its author put it; tensors are read when they are used.

    Raises:
        ValueError: the file holds more than tensors and plain values, or no state.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle's version, which stands on a damaged byte
            held = torch.load(file_at(Path(path)), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle's own, zip's, or torch's: of a file from elsewhere any may come
        raise ValueError(
            f"{path}: expected a file of torch.save with tensors alone, got what cannot be read as such "
            f"({' '.join(str(error).split())[:120]})"
        ) from error
    for holder in ("state_dict", "model_state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(holder), dict):
            held = held[holder]
            break
    named = held.items() if isinstance(held, dict) else ()
    weights = {key: value for key, value in named if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not weights:
        raise ValueError(f"{path}: expected the state of a model, got a file without tensors under names")
    return {key.removeprefix("module."): tensor for key, tensor in weights.items()}
