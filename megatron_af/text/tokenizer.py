"""Tokenizer of the language model with Audio Flamingo's special tokens behind its vocabulary.

    tokenizer = Tokenizer.load("models/Qwen2.5-3B")     # folder, tokenizer.json, or hub name
    tokenizer.added                                     # {"<audio>": 151665, "<|endofchunk|>": 151666, ...}

Order and strings of the added tokens: AF2 ``src/factory.py``. AF1 adds no pad token to OPT's, which has one.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_af.foreign import ForeignError, described, file_at, head_of, read_json

AUDIO, END_OF_CHUNK, PAD, SEPARATOR = "<audio>", "<|endofchunk|>", "<|PAD_TOKEN|>", "<SEP>"
ADDED_TOKENS = (AUDIO, END_OF_CHUNK, PAD, SEPARATOR)
OPT_PAD, OPT_BEGIN = "<pad>", "</s>"
END_OF_SEQUENCE = ("<|endoftext|>", "</s>")
"""Tokens that end a sequence, by preference, where the folder's ``tokenizer_config.json`` names none."""


class Tokenizer:
    """Text to ids and back. Special tokens written inside a text are treated as plain text."""

    def __init__(self, base: tokenizers.Tokenizer, *, eos: str = "") -> None:
        vocabulary = base.get_vocab(with_added_tokens=True)
        is_opt = OPT_PAD in vocabulary and OPT_BEGIN in vocabulary
        added = [token for token in ADDED_TOKENS if not (is_opt and token == PAD)]
        present = [token for token in added if token in vocabulary]
        if present and len(present) != len(added):
            missing = ", ".join(token for token in added if token not in vocabulary)
            raise ValueError(
                f"the tokenizer holds {', '.join(present)} but not {missing}; expected all of them (exported "
                "by Audio Flamingo) or none (the language model's own): check data.tokenizer"
            )
        self.first_added_id: int = vocabulary[added[0]] if present else max(vocabulary.values()) + 1
        self.added = {token: self.first_added_id + i for i, token in enumerate(added)}
        moved = [token for token in present if vocabulary[token] != self.added[token]]
        if moved:
            raise ValueError(
                f"the tokenizer's ids of {', '.join(moved)} do not follow each other in the order "
                f"{', '.join(added)}; check data.tokenizer"
            )
        self.eos = eos or next((token for token in END_OF_SEQUENCE if token in vocabulary), "")
        if self.eos not in vocabulary:
            raise ValueError(
                f"the tokenizer has no end-of-sequence token ({self.eos or ' or '.join(END_OF_SEQUENCE)}); "
                "set eos_token in its tokenizer_config.json (data.tokenizer)"
            )
        self.eos_id: int = vocabulary[self.eos]
        self.audio_id = self.added[AUDIO]
        self.end_of_chunk_id = self.added[END_OF_CHUNK]
        self.separator_id = self.added[SEPARATOR]
        self.pad_id = vocabulary[OPT_PAD] if is_opt else self.added[PAD]
        self.bos_id: int | None = vocabulary[OPT_BEGIN] if is_opt else None
        """Begin of sequence, which OPT's models expect and Qwen's do not have."""
        self._base = base
        self._base.no_truncation()
        self._base.no_padding()
        self._base.encode_special_tokens = True  # a prompt with "<SEP>" in it must not forge one
        unknown = getattr(base.model, "unk_token", None)
        self._unknown_id: int | None = vocabulary.get(unknown) if unknown else None
        self._never: dict[int, list[int]] = {}
        """Size of a table -> ids that are never written: asked for with every batch, over the whole vocabulary."""
        self._names = {index: token for token, index in self.added.items()}

    @classmethod
    def load(cls, source: str | Path) -> "Tokenizer":
        """Loads from a folder with ``tokenizer.json`` (OPT: ``vocab.json``, ``merges.txt``), that file, or a hub name.

        Raises:
            FileNotFoundError: ``source`` is neither, and cannot be fetched from the hub.
            ForeignError: a file is not what its name says.
        """
        path = Path(source)
        if path.is_file():
            return cls(read_tokenizer(path), eos=_stated_eos(path.parent))
        folder = path if path.is_dir() else fetch(str(source))
        if (folder / "tokenizer.json").is_file():
            return cls(read_tokenizer(folder / "tokenizer.json"), eos=_stated_eos(folder))
        return cls(_opt_tokenizer(folder), eos=_stated_eos(folder))

    @property
    def num_added(self) -> int:
        return len(self.added)

    def __len__(self) -> int:
        """Ids in use, added tokens included."""
        return self.first_added_id + self.num_added

    def base_json(self) -> str:
        """``tokenizer.json`` of the language model's own tokenizer; the added tokens are in it where they came so."""
        text: str = self._base.to_str()
        return text

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without any special token."""
        ids: list[int] = self._base.encode(text, add_special_tokens=False).ids
        return ids

    def unknown_words(self, text: str) -> list[str]:
        """Pieces of a text that the vocabulary cannot say: they all become its one token for anything unknown.

        Byte-level vocabularies (Qwen's, OPT's) say everything.
        """
        if self._unknown_id is None:
            return []
        encoding = self._base.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[begin:end] for token, (begin, end) in pairs if token == self._unknown_id]

    def never_written(self, ids: int) -> list[int]:
        """Of the first ``ids`` ids, those that are no part of an answer and do not end one: special tokens, and rows of
        a table that have no token."""
        if ids not in self._never:
            self._never[ids] = self._found_never(ids)
        return self._never[ids]

    def _found_never(self, ids: int) -> list[int]:
        ends = {self.eos_id, self.end_of_chunk_id}
        vocabulary = set(self._base.get_vocab(with_added_tokens=True).values()) | set(self.added.values())
        special = {index for index, token in self._base.get_added_tokens_decoder().items() if token.special}
        special |= {*self.added.values(), self.pad_id}
        return [index for index in range(ids) if index not in ends and (index in special or index not in vocabulary)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``; special tokens are left out, or written by their names."""
        pieces: list[str] = []
        plain: list[int] = []

        def flush() -> None:
            if plain:
                pieces.append(self._base.decode(plain, skip_special_tokens=False))
                plain.clear()

        for index in ids:
            name = self.eos if index == self.eos_id else self._names.get(index)
            if name is None:
                plain.append(index)
            elif not skip_special:
                flush()
                pieces.append(name)
        flush()
        return "".join(pieces)


def fetch(name: str) -> Path:
    """Folder of a hub repository's tokenizer files; which of them there are depends on the model.

    Raises:
        FileNotFoundError: it is neither in the hub's cache here nor can it be reached.
    """
    from transformers.utils import cached_file

    try:
        if name.endswith(".json"):
            raise OSError("a file, not a hub name")
        folder = Path(cached_file(name, "tokenizer_config.json")).parent
    except OSError as error:
        raise FileNotFoundError(
            f"data.tokenizer={name!r} is no folder with tokenizer.json, no such file, and no hub name that can be "
            f"reached ({type(error).__name__})"
        ) from error
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        with suppress(OSError):
            cached_file(name, file)
    return folder


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """A ``tokenizer.json`` as the library reads it.

    Raises:
        ForeignError: it is something else, or broken; the message names the file.
    """
    return _read(path, lambda: tokenizers.Tokenizer.from_file(str(file_at(path))))


def _read[Found](path: Path, read: Callable[[], Found]) -> Found:
    try:
        return read()
    except Exception as error:  # the library has no type of its own
        known = described(head_of(path))
        why = known if known and not known.startswith("is text") else f"is no tokenizer ({error})"
        raise ForeignError(f"{path} {why}") from None


def _stated_eos(folder: Path) -> str:
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return ""
    stated = read_json(settings)
    if not isinstance(stated, dict):
        raise ForeignError(f"{settings} is no configuration of a tokenizer")
    value = stated.get("eos_token") or ""
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _opt_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """OPT's repositories hold GPT-2's two files and no ``tokenizer.json``."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise FileNotFoundError(f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt (data.tokenizer)")
    both = str(file_at(vocabulary)), str(file_at(merges))
    base = tokenizers.Tokenizer(_read(vocabulary, lambda: models.BPE.from_file(*both)))
    if base.token_to_id(OPT_PAD) is None or base.token_to_id(OPT_BEGIN) is None:
        raise FileNotFoundError(f"{folder} holds no tokenizer.json, and its vocab.json is not OPT's (data.tokenizer)")
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    return base
