"""A text encoder whose output is averaged over the real tokens of a text.

    tower = TextTower(config.model.clap, tokenizer)
    ids_TS, real_TS = tower.tokenize(["a dog barks", "rain falls"])
    mean_TH = tower(ids_TS, real_TS)

Any encoder that transformers knows will do: T5's (AF-CLAP uses FLAN-T5 large), BERT and its kin. The reference averaged
over padding too. Shapes: T texts, S positions, H hidden.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megatron_af.config import ClapConfig


class TextTokenizer(Protocol):
    """What a text tower needs of a tokenizer (:class:`megatron_af.text.tokenizer.Tokenizer` has it)."""

    @property
    def pad_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def __len__(self) -> int: ...


class TextTower(nn.Module):
    """``tokenizer`` serves a fresh encoder; one that is loaded brings its own."""

    def __init__(self, config: ClapConfig, tokenizer: TextTokenizer | None = None) -> None:
        super().__init__()
        self.max_tokens = config.text_max_tokens
        model, self._tokenizer = _build(config, tokenizer)
        if config.text_recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.width: int = model.config.hidden_size
        self.model: nn.Module = model

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (int64) and which of them are real (bool), both (T, S), right padded to the longest text.

        Raises:
            ValueError: for a text without any token.
        """
        rows = [self._tokenizer.encode(text) for text in texts]
        empty = [i for i, row in enumerate(rows) if not row]
        if empty:
            raise ValueError(f"text {empty[0]} of {len(rows)} has no token: {texts[empty[0]]!r}; mend its row")
        rows = [row[: self.max_tokens] for row in rows]
        longest = max((len(row) for row in rows), default=1)
        ids_TS = torch.full((len(rows), longest), self._tokenizer.pad_id)
        for ids_S, row in zip(ids_TS, rows, strict=True):
            ids_S[: len(row)] = torch.tensor(row)
        lengths_T = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return ids_TS, torch.arange(longest) < lengths_T[:, None]

    def forward(self, ids_TS: Tensor, real_TS: Tensor) -> Tensor:
        hidden_TSH = self.model(input_ids=ids_TS, attention_mask=real_TS.long()).last_hidden_state
        weight_TS = real_TS / real_TS.sum(1, keepdim=True)
        return torch.einsum("tsh,ts->th", hidden_TSH, weight_TS.to(hidden_TSH.dtype))


def _build(config: ClapConfig, tokenizer: TextTokenizer | None) -> tuple[Any, TextTokenizer]:
    # Imported only now, as below: it takes more than a second, and stages that answer read this module too.
    from transformers import AutoModelForTextEncoding, BertConfig

    if not config.text_tower:
        if tokenizer is None:
            raise ValueError("a fresh text tower needs a tokenizer: set data.tokenizer or model.clap.text_tower")
        sizes = BertConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_id,
            hidden_size=config.text_hidden,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=4 * config.text_hidden,
            max_position_embeddings=config.text_max_tokens,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = AutoModelForTextEncoding.from_config(sizes)
    else:
        model, tokenizer = _loaded(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # BERT's head for its own pre-training task: nothing here would use it
    return model, tokenizer


def _loaded(config: ClapConfig) -> tuple[Any, TextTokenizer]:
    """
    Raises:
        ValueError: it is no text encoder, or a part of it is missing, broken or of another model.
    """
    from transformers import AutoModelForTextEncoding

    place = config.text_tower
    kind = "folder" if Path(place).is_dir() else "name that is no folder here"
    where = f"model.clap.text_tower: {place!r} is a {kind}"
    try:
        model, found = AutoModelForTextEncoding.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = _PretrainedTokenizer(config)
    except Exception as error:  # the library's, or one of the many that it reads files by
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{where} and holds no text encoder that transformers can load ({reason})") from error
    lost = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if lost or found["mismatched_keys"]:
        name = lost[0] if lost else next(iter(found["mismatched_keys"]))[0]
        what = "does not hold" if lost else "holds in another shape than its config.json says"
        raise ValueError(f"{where}, which {what} {name}: its files are of two models, fetch all of them again")
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise ValueError(f"{where}, in which {broken[0]} holds NaN or infinity: fetch it again")
    if tokenizer.pad_id is None:
        raise ValueError(f"{where} whose tokenizer has no pad_token: set it in its tokenizer_config.json")
    if not tokenizer.has_words:
        raise ValueError(f"{where}, which holds no tokenizer: save the one that it was trained with beside it")
    if (words := len(tokenizer)) > (rows := model.get_input_embeddings().num_embeddings):
        raise ValueError(f"{where} with {words} tokens in its tokenizer, and {rows} rows in its table: of two models")
    return model, tokenizer


class _PretrainedTokenizer:
    """A Hugging Face tokenizer as a :class:`TextTokenizer`, with the special tokens its tower was trained with."""

    def __init__(self, config: ClapConfig) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(config.text_tower)
        self._max_tokens = config.text_max_tokens
        self.pad_id: int = self._tokenizer.pad_token_id
        self.has_words = len(self._tokenizer) > len(set(self._tokenizer.all_special_ids))
        """The library makes one of special tokens alone where it finds no file of it."""

    def encode(self, text: str) -> list[int]:
        # cut here, so that the closing special token survives
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"]
        return ids

    def __len__(self) -> int:
        return len(self._tokenizer)
