"""What became of every tensor of a file that somebody else published.

    report = KeyReport.of(held, wanted, aliases)
    print(report)                                   # 812 used; 400 aliases; 24 ignored (12: …, 12: …)

Each is used, is an alias of a used one, is ignored for a known reason, or is unknown; unknown ones and missing ones are
errors: the file is of another model than the configuration. So is an alias that is not what it is an alias of.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from megatron_af.foreign import ForeignError, described, file_at, head_of

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
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
HOLDERS = ("state_dict", "model_state_dict", "model")
"""Keys under which whoever saves a training run puts the state of its model."""
ROWS = 8192
"""Of two tensors that are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    used: tuple[str, ...]
    aliases: dict[str, str]
    """Second name -> the used one."""
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
        used, missing = [], []
        seconds: dict[str, str] = {}
        for name in wanted:
            found = [one for one in (name, *aliases(name)) if one in left]
            if found:
                used.append(found[0])
                seconds |= dict.fromkeys(found[1:], found[0])
            elif not re.search(optional, name):
                missing.append(name)
            for one in found:
                del left[one]
        ignored = {key: reason for key in left for pattern, reason in REASONS.items() if re.search(pattern, key)}
        return cls(
            used=tuple(used),
            aliases=seconds,
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


def compare_aliases(report: KeyReport, source: Callable[[str], Any], where: str, hint: str = "") -> None:
    """
    Args:
        source: from a key to its tensor.
        where: the file.
        hint: what to do about it, where more can be done than to fetch the file again.

    Raises:
        ForeignError: a tensor and the one whose second name it has are not the same: which is meant nobody knows.
    """
    for second, first in report.aliases.items():
        one, other = source(first), source(second)
        same = tuple(one.shape) == tuple(other.shape)
        rows = one.shape[0] if len(one.shape) > 1 else 0
        for begin in range(0, rows, ROWS) if rows and same else (0,):
            part = slice(begin, begin + ROWS) if rows else ...
            if not same or not torch.equal(one[part].float(), other[part].float()):
                raise ForeignError(
                    f"{where}: {second} is not {first}, whose second name it is, and one of them would be lost; "
                    f"{hint or 'fetch it again'}"
                )


def bare_names(held: Iterable[str], where: Path | str) -> dict[str, str]:
    """Name of each tensor without what wrapped its module (DistributedDataParallel, torch.compile, FSDP) -> as held.

    Raises:
        ForeignError: two are the same then.
    """
    names: dict[str, str] = {}
    for name in held:
        bare = WRAPPERS.sub("", name)
        if bare in names:
            raise ForeignError(f"{where} holds {names[bare]} and {name}: expected one of them, save the model anew")
        names[bare] = name
    return names


def pickled_weights(path: Any) -> dict[str, torch.Tensor]:
    """State of a model in a file of torch, wherever in it its author put it; tensors are read when they are used.

    Raises:
        ValueError: the file holds more than tensors and plain values, or no state.
    """
    head = head_of(Path(path))
    zipped = head.startswith(b"PK\x03\x04")  # as torch writes since 1.6; what is older cannot be mapped
    expected = f"{path}: expected a file of torch.save with tensors alone"
    if head[8:9] == b"{" and not head.startswith(b"{"):
        raise ValueError(f"{expected}, got a safetensors file; of a model in such files name the folder")
    if not zipped and (known := described(head)):
        raise ValueError(f"{expected}, got one that {known.partition(': write ')[0]}")
    try:
        with warnings.catch_warnings(action="ignore"), _nothing_made():
            # ignored: what torch thinks of a pickle's version, which stands on a damaged byte
            held = torch.load(file_at(Path(path)), map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # pickle's own, zip's, or torch's: of a file from elsewhere any may come
        raise ValueError(f"{expected}, {_why(head, str(error))}") from error
    while isinstance(held, dict) and (inside := [held[key] for key in HOLDERS if isinstance(held.get(key), dict)]):
        held = inside[0]
    named = held.items() if isinstance(held, dict) else ()
    weights = {key: value for key, value in named if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not weights:
        raise ValueError(f"{path}: expected the state of a model, got a file without tensors under names")
    if odd := [key for key, one in weights.items() if one.layout != torch.strided or one.is_meta or one.is_quantized]:
        raise ValueError(f"{path}: {odd[0]} is sparse, quantised or without numbers; save it as a plain tensor")
    return {bare: weights[name] for bare, name in bare_names(weights, path).items()}


def _why(head: bytes, said: str) -> str:
    """Of what torch says about a file that it does not read."""
    if named := re.search(r"GLOBAL ([\w.]+)", said):
        return f"and it names {named[1]}, which is not run: whoever made it can save its state_dict() alone"
    if "TorchScript" in said:
        return "got TorchScript, which is code: whoever made it can save its state_dict() alone"
    if "locating file" in said or "file in archive" in said:
        return "got an archive of something else"
    if not head.startswith((b"PK", b"\x80")):
        return "got a file of something else"
    if "Unsupported operand" in said:
        return "and its pickle is of another version than torch writes: save its state_dict() by torch.save again"
    return "got one that is broken: fetch it again"


class _Left:
    """Stands for what a training run keeps beside its weights, such as its last loss as a number of numpy: nothing of
    it is made."""

    def __new__(cls, *arguments: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_INERT = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
    *("numpy.dtype", "numpy.ndarray", "argparse.Namespace"),
)
"""What the files of LAION-CLAP, and other people's training runs, hold beside tensors. ``_local``: as Python
3.13 writes paths."""


@contextmanager
def _nothing_made() -> Iterator[None]:
    """Inside, pickles make tensors and nothing else: megatron-core lets torch make classes of its own, too."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(_Left, name) for name in _INERT])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
