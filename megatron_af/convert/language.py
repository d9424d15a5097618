"""A language model in Hugging Face's layout, read into any layout of ours and written back to the same bits.

    checkpoint = LanguageFolder("Qwen2.5-3B")            # config.json and *.safetensors, sharded or not
    checkpoint.check(config.model.lm)                 # the YAML describes this model
    load_language(model.chunks, checkpoint.source, config.model.lm)
    rows = checkpoint.mean_row(tokenizer.first_added_id)

    tensors = hugging_face_tensors(model.chunks, config.model.lm)           # back: (name, tensor) on rank 0
    write_language(folder, tensors, config.model.lm, torch.bfloat16)

Each rank reads only the rows and columns it holds, and what is written passes rank 0 tensor by tensor. Names are the
family's (``megatron_af/decoder/family.py``), the same table in both directions. Layouts: Hugging Face's modelling files
on one side, megatron-core's ``SelfAttention`` and ``MLP`` on the other: it fuses q, k and v group by group (the
queries of a group of heads, then its key, then its value) and puts the gate's rows before the up projection's.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megatron_af.config import LMConfig
from megatron_af.config.loading import EXPECTED
from megatron_af.convert.keys import KeyReport, bare_names, compare_aliases
from megatron_af.convert.shards import SHARD_BYTES, Held, instead, open_weights, tensor_files, write_shards
from megatron_af.decoder.family import LanguageFamily, family_of
from megatron_af.files import write
from megatron_af.foreign import ForeignError, is_finite, read_json
from megatron_af.parallel.global_state import TABLES, Placement, fill, placements, whole_tensors

WHOLE = slice(None)


class Sliceable(Protocol):
    """A tensor, or one in a safetensors file (``Held``), of which parts can be had."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


type Source = Callable[[str], Sliceable]
"""From a Hugging Face name to its tensor; a state dict's ``__getitem__`` is one."""


def hugging_face_names(name: str, family: LanguageFamily | type[LanguageFamily]) -> tuple[str, ...]:
    """Names of the tensors that one of the language model's is made of (canonical name, no gated blocks)."""
    own = name.removeprefix("lm.")
    if own in family.outside_layers:
        return (family.outside_layers[own],)
    layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", own)
    if layer is None or layer[2] not in family.inside_layers:
        raise KeyError(f"{name} has no counterpart in {family.model_type}")
    return tuple(f"{family.layer_prefix}.{layer[1]}.{part}" for part in family.inside_layers[layer[2]])


def read_part(placement: Placement, lm: LMConfig, source: Source, *, rows_behind: int = 0) -> Tensor:
    """This rank's part of one parameter, from the slices it is made of.

    Args:
        rows_behind: of added tokens, which stand behind the tables' own rows in ``source``.

    Raises:
        ForeignError: they have other shapes than the configuration says.
    """
    names = hugging_face_names(placement.name, family_of(lm))
    tensors = [source(name) for name in names]
    for name, tensor, rows in zip(names, tensors, _rows(placement, lm, len(names)), strict=True):
        expected = (rows + rows_behind * (placement.name in TABLES), *placement.shape[1:])
        if (found := tuple(tensor.shape)) != expected:
            told = tensor if isinstance(tensor, Held) else name
            raise ForeignError(f"{told}: expected shape {expected}, got {found}; check model.lm")
    if placement.dim is None:
        return tensors[0][WHOLE]
    ranges = placement.ranges()
    if len(tensors) == 3:
        ((start, stop),) = ranges
        return _fused_qkv(tensors, lm, start, stop)
    if len(tensors) == 2:
        half = placement.shape[placement.dim] // 2
        ranges = [ranges[0], (ranges[1][0] - half, ranges[1][1] - half)]
    index: dict[int, Callable[[int, int], Any]] = {0: lambda a, b: slice(a, b), 1: lambda a, b: (WHOLE, slice(a, b))}
    parts = [tensor[index[placement.dim](*span)] for tensor, span in zip(tensors, ranges, strict=True)]
    return torch.cat(parts, placement.dim) if len(parts) > 1 else parts[0]


def _rows(placement: Placement, lm: LMConfig, parts: int) -> list[int]:
    """Of each tensor that a parameter is made of."""
    if parts == 3:
        head_dim = lm.hidden // lm.heads
        return [lm.hidden, lm.kv_heads * head_dim, lm.kv_heads * head_dim]
    return [placement.shape[0] // parts] * parts


def _fused_qkv(tensors: list[Sliceable], lm: LMConfig, start: int, stop: int) -> Tensor:
    """Rows ``start`` to ``stop`` of the fused projection; they hold whole groups of heads."""
    head_dim, queries = lm.hidden // lm.heads, lm.heads // lm.kv_heads
    per_group = (queries * head_dim, head_dim, head_dim)
    first, last = start // sum(per_group), stop // sum(per_group)
    tail = tensors[0][:0].shape[1:]  # none for a bias
    parts = [
        tensor[first * rows : last * rows].reshape(last - first, rows, *tail)
        for tensor, rows in zip(tensors, per_group, strict=True)
    ]
    return torch.cat(parts, dim=1).flatten(0, 1)


def split_whole(name: str, whole: Tensor, lm: LMConfig) -> tuple[Tensor, ...]:
    """The tensors, in the order of :func:`hugging_face_names`, that one of ours is made of; undoes the fusing."""
    if ".self_attention.linear_qkv." in name:
        head_dim, queries = lm.hidden // lm.heads, lm.heads // lm.kv_heads
        groups = whole.view(lm.kv_heads, (queries + 2) * head_dim, *whole.shape[1:])
        parts = torch.split(groups, [queries * head_dim, head_dim, head_dim], 1)
        return tuple(part.flatten(0, 1) for part in parts)
    return whole.chunk(len(hugging_face_names(name, family_of(lm))))


def hugging_face_tensors(chunks: Iterable[nn.Module], lm: LMConfig) -> Iterator[tuple[str, Tensor]]:
    """The language model's tensors under Hugging Face's names, on rank 0; a collective (`whole_tensors`).

    Its adapters must have been merged (``decoder/lora.py``).
    """
    for name, whole in whole_tensors(chunks):
        if ".xattn." not in name:
            yield from zip(hugging_face_names(name, family_of(lm)), split_whole(name, whole, lm), strict=True)


def write_language(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    lm: LMConfig,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``config.json`` and the weights, in shards where they are large, into a folder that is there."""
    write_shards(folder, ((name, tensor.to(dtype)) for name, tensor in tensors), shard_bytes)
    values = family_of(lm).write_config() | {"dtype": str(dtype).removeprefix("torch.")}
    write(folder / "config.json", json.dumps(values, indent=2) + "\n")


def check_sizes(lm: LMConfig, theirs: LMConfig, folder: Path) -> None:
    """Raises ValueError with every key of ``model.lm`` that describes another model than the one in ``folder``; how
    many positions there are matters where they are learnt."""
    different = [
        f"model.lm.{key} = {own}: the folder has {getattr(theirs, key)}"
        for key, own in vars(lm).items()
        if own != getattr(theirs, key) and (key != "max_positions" or family_of(lm).position_rows)
    ]
    if different:
        raise ValueError(f"{folder} holds another model:\n  " + "\n  ".join(different))


def load_language(chunks: Iterable[nn.Module], source: Source, lm: LMConfig) -> None:
    """Fill the language model of every chunk of this rank; its gated blocks and adapters stay as they are."""
    for chunk in chunks:
        for placement, parameter in placements(chunk):
            if not any(beside in placement.name for beside in (".xattn.", ".lora.")):
                fill(parameter, placement, read_part(placement, lm, source))


def _without(folder: Path) -> str:
    """What a folder without a configuration is, and what to do about it."""
    if not folder.is_dir():
        return f"which {'is a file' if folder.exists() else 'is not there: download the model first'}"
    if snapshots := sorted((folder / "snapshots").glob("*/config.json")):
        return f"a cache of the hub: name {snapshots[-1].parent}"
    return instead(folder).replace("got ", "with ", 1)


class LanguageFolder:
    """A language model as ``save_pretrained`` and the hub lay it out.

    Args:
        family: ``model.lm.family``: whose names and ``config.json`` it has.

    Raises:
        FileNotFoundError: no ``config.json`` or not all weights in the folder.
        ValueError: another kind of model, quantised weights, files that are broken or of two models, or a variant this
            decoder does not compute.
    """

    def __init__(self, folder: str | Path, family: str = "qwen2") -> None:
        self.folder = Path(folder)
        self._name, self._family = family, family_of(LMConfig(family=family))
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(
                f"expected a Hugging Face folder with config.json, got {self.folder}, {_without(self.folder)}"
            )
        if (self.folder / "adapter_config.json").is_file():
            raise ForeignError(
                f"{self.folder} holds adapters beside its weights (adapter_config.json), which some programs add to "
                "them: merge them (peft's merge_and_unload), or move them away"
            )
        self._config = read_json(self.folder / "config.json")
        if not isinstance(self._config, dict):
            raise ForeignError(f"{self.folder}/config.json is no configuration of a model")
        kind = self._config.get("model_type")
        if kind != self._family.model_type:
            expected = self._family.model_type
            raise ValueError(f"{self.folder}/config.json: expected model_type {expected!r}, got {kind!r}")
        if quantised := self._config.get("quantization_config"):
            how = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
            raise ForeignError(
                f"{self.folder}/config.json: its weights are quantised ({how}); take the model's release in BF16, FP16 "
                "or FP32"
            )
        self._file_of = tensor_files(self.folder)
        self._held = self._known(bare_names(self._file_of, self.folder))
        self._open: dict[str, Any] = {}

    def _known(self, held: dict[str, str]) -> dict[str, str]:
        """Names as the family has them -> as held: without its head, a model is saved under the names of its inside."""
        outside = self._family.outside_layers
        table, head = outside["embedding.word_embeddings.weight"], outside["output_layer.weight"]
        inside = table.partition(".")[0] + "."
        if table in held or table.removeprefix(inside) not in held:
            return held
        return {name if name == head else inside + name: own for name, own in held.items()}

    @property
    def lm_config(self) -> LMConfig:
        """The sizes that ``config.json`` states."""
        file, usual = f"{self.folder}/config.json", LMConfig()
        try:
            stated = self._family.read_config(self._config)
        except KeyError as missing:
            raise ForeignError(f"{file} does not state {missing.args[0]}: fetch it again") from None
        except (TypeError, AttributeError):
            raise ForeignError(f"{file} holds values of other kinds than a {self._name} has: fetch it again") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        for key, value in stated.items():
            kind = type(getattr(usual, key))
            if not (is_finite(value) if kind is float else type(value) is kind):
                raise ForeignError(f"{file}: expected {EXPECTED[kind]} as model.lm.{key}, got {value!r:.80}")
        if not 0 < stated["layers"] <= len(self._file_of):
            raise ForeignError(f"{file} states {stated['layers']} layers, and there are {len(self._file_of)} tensors")
        return LMConfig(family=self._name, **stated)

    def check(self, lm: LMConfig) -> None:
        """Raises ValueError with every key of ``model.lm`` that describes another model than the folder's."""
        check_sizes(lm, self.lm_config, self.folder)

    def report(self) -> KeyReport:
        """What becomes of each tensor of the folder; of a tied model, the output layer's is the table once more."""
        family, lm = self._family, self.lm_config
        head = family.outside_layers["output_layer.weight"] if lm.tied else ""
        wanted = [name for name in family.outside_layers.values() if name != head]
        for layer in range(lm.layers):
            for parts in family.inside_layers.values():
                wanted += [f"{family.layer_prefix}.{layer}.{part}" for part in parts]
        return KeyReport.of(self._held, wanted, self._aliases)

    def compare(self, report: KeyReport) -> None:
        """Raises ForeignError where a tied model has an output layer that is not its table."""
        hint = "where the output layer is its own, set tie_word_embeddings of config.json and model.lm.tied to false"
        compare_aliases(report, self.source, str(self.folder), hint)

    def _aliases(self, name: str) -> tuple[str, ...]:
        outside = self._family.outside_layers
        table, head = outside["embedding.word_embeddings.weight"], outside["output_layer.weight"]
        return (head,) if name == table and self.lm_config.tied else ()

    def source(self, name: str) -> Sliceable:
        """A tensor to slice, of a tied table under either name; nothing is read before it is."""
        found = next((one for one in (name, *self._aliases(name)) if one in self._held), None)
        if found is None:
            raise ForeignError(f"{self.folder} holds no {name}: fetch it again")
        file = self._file_of[self._held[found]]
        if file not in self._open:
            self._open[file] = open_weights(self.folder / file)
        return Held(self.folder / file, found, self._open[file].get_slice(self._held[found]))

    def mean_row(self, known_tokens: int, block: int = 8192) -> Tensor:
        """Mean row [H] of the embedding table over the tokenizer's own tokens: where added rows start.

        Qwen2.5's table has more rows than its tokenizer has tokens; the rest is untrained and left out.
        """
        table = self.source(self._family.outside_layers["embedding.word_embeddings.weight"])
        if (rows := table.shape[0]) < known_tokens:
            raise ForeignError(
                f"{self.folder} has a table of {rows} rows, and data.tokenizer {known_tokens} tokens: they are of two "
                "models"
            )
        spans = [(start, min(start + block, known_tokens)) for start in range(0, known_tokens, block)]
        sums = [table[start:stop].double().sum(0) for start, stop in spans]
        return (torch.stack(sums).sum(0) / known_tokens).float()
