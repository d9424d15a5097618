"""Tokenizer of the language model with Audio Flamingo's special tokens behind its vocabulary.

    tokenizer = Tokenizer.load("models/Qwen2.5-3B")     # folder, tokenizer.json, or hub name
    tokenizer.added                                     # {"<audio>": 151665, "<|endofchunk|>": 151666, ...}

Order and strings of the added tokens: AF2 ``src/factory.py``. AF1 adds no pad token to OPT's, which has one.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_af.foreign import ForeignError, described, file_at, head_of, parse_json, read_bytes, read_json

AUDIO, END_OF_CHUNK, PAD, SEPARATOR = "<audio>", "<|endofchunk|>", "<|PAD_TOKEN|>", "<SEP>"
ADDED_TOKENS = (AUDIO, END_OF_CHUNK, PAD, SEPARATOR)
OPT_PAD, OPT_BEGIN = "<pad>", "</s>"
END_OF_SEQUENCE = ("<|endoftext|>", "</s>")
"""Tokens that end a sequence, by preference, where the folder's ``tokenizer_config.json`` names none."""

STRANGE = "\ue000 \u16a0"
"""Letters that no vocabulary has but one of bytes."""
SIGNS = frozenset("\u0120\u2581")
"""What stands for a space in byte-level vocabularies, and in SentencePiece's."""
SAVE = "save it where it was made, by AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


class Tokenizer:
    """Text to ids and back. Special tokens written inside a text are treated as plain text."""

    def __init__(self, base: tokenizers.Tokenizer, *, eos: str = "") -> None:
        vocabulary = base.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError("the tokenizer holds no tokens; fetch it again")
        _refuse_shared_ids(vocabulary)
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
        if present and (last := max(vocabulary, key=vocabulary.__getitem__)) != added[-1]:
            raise ValueError(
                f"the tokenizer holds {last} at {vocabulary[last]}, behind Audio Flamingo's {added[-1]} at "
                f"{vocabulary[added[-1]]}, where no row of a table stands; add tokens to the language model's own"
            )
        self.eos = eos or next((token for token in END_OF_SEQUENCE if token in vocabulary), "")
        if self.eos not in vocabulary:
            raise ValueError(
                f"the tokenizer has no end-of-sequence token ({self.eos or ' or '.join(END_OF_SEQUENCE)}); "
                "set eos_token in its tokenizer_config.json (data.tokenizer)"
            )
        if self.eos in self.added:
            raise ValueError(f"eos_token of tokenizer_config.json is {self.eos}, which Audio Flamingo means otherwise")
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
        plain = {token.content for token in base.get_added_tokens_decoder().values() if not token.special}
        base.add_special_tokens([token for token in (self.eos, *present) if token in plain])
        self._base.encode_special_tokens = True  # a prompt with "<SEP>" in it must not forge one
        if getattr(base.model, "dropout", None):
            base.model.dropout = None  # of merges, while a tokenizer is trained with: the same text has the same ids
        self._unknown_id, self._says_all = _unknown(base, vocabulary)
        if SIGNS & set(written := base.decode(base.encode("a b", add_special_tokens=False).ids)):
            raise ValueError(f"the tokenizer writes {written!r} for 'a b': it lacks the decoder of its pre_tokenizer")
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
        folder = path.parent if path.is_file() else path if path.is_dir() else fetch(str(source))
        file = path if path.is_file() else folder / "tokenizer.json"
        base = read_tokenizer(file) if file.exists() else _opt_tokenizer(folder)
        where = file if file.exists() else folder
        _refuse_other_ids(folder, where, base)
        try:
            return cls(base, eos=stated_eos(folder))
        except ForeignError:
            raise
        except ValueError as error:
            raise ForeignError(f"{where}: {error}") from None

    @property
    def num_added(self) -> int:
        return len(self.added)

    def __len__(self) -> int:
        """Ids in use, added tokens included."""
        return self.first_added_id + self.num_added

    def differs(self, other: "Tokenizer") -> str:
        """Where a token of ``other`` has another id in this one, or none; empty where every text has the same ids, but
        for words that this one has besides."""
        ours = self._base.get_vocab(with_added_tokens=True)
        theirs = other._base.get_vocab(with_added_tokens=True)
        for token, index in sorted(theirs.items(), key=lambda item: item[1]):
            if token not in other.added and (found := ours.get(token)) != index:
                return f"{token!r} is {index} in the one and {'unknown' if found is None else found} in the other"
        return ""

    def base_json(self) -> str:
        """``tokenizer.json`` of the language model's own tokenizer; the added tokens are in it where they came so."""
        text: str = self._base.to_str()
        return text

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without any special token."""
        ids: list[int] = self._base.encode(text, add_special_tokens=False).ids
        return ids

    def unknown_words(self, text: str) -> list[str]:
        """Pieces of a text that the vocabulary cannot say: they all become its one token for anything unknown, or,
        where it has none, are left out.

        Byte-level vocabularies (Qwen's, OPT's) say everything.
        """
        if self._says_all:
            return []
        encoding = self._base.encode(text, add_special_tokens=False)
        if self._unknown_id is not None:
            pairs = zip(encoding.ids, encoding.offsets, strict=True)
            return [text[begin:end] for token, (begin, end) in pairs if token == self._unknown_id]
        said = {place for begin, end in encoding.offsets for place in range(begin, end)}
        kept = ("" if place in said or letter.isspace() else letter for place, letter in enumerate(text))
        return [letter for letter in kept if letter]

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


def other_words(own: str, theirs: str) -> str:
    """How two tokenizers differ (`Tokenizer.differs`), as far as both lie here and can be read; else empty."""
    if theirs in ("", own) or not Path(theirs).exists() or not Path(own).exists():
        return ""
    try:
        return Tokenizer.load(own).differs(Tokenizer.load(theirs))
    except (OSError, ValueError):  # what cannot be read cannot be compared
        return ""


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
        below = "" if Path(name).is_absolute() else f" below {Path.cwd()}"
        raise FileNotFoundError(
            f"data.tokenizer={name!r} is no folder with tokenizer.json{below}, no such file, and no hub name that can "
            f"be reached ({type(error).__name__})"
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
    if path.suffix == ".model":
        raise ForeignError(f"{path} is SentencePiece's: {SAVE}")
    if path.is_dir():
        raise ForeignError(f"{path} is a folder, no file")
    data = read_bytes(path)
    spec = parse_json(data, str(path))
    if not (isinstance(spec, dict) and isinstance(spec.get("model"), dict)):
        raise ForeignError(f"{path} is JSON, but no tokenizer: it has no model; fetch it again")
    plain = data[:1] == b"{" and data[1:2] != b"\0"  # neither marked nor UTF-16, which the library does not know
    with _unheard() if b"precompiled_charsmap" in data else nullcontext():
        base = _read(path, lambda: tokenizers.Tokenizer.from_str(data.decode() if plain else json.dumps(spec)))
    for token in spec.get("added_tokens") or ():  # the library gives an id that is another token's, or too far, anew
        if (found := base.token_to_id(token["content"])) != token["id"]:
            raise ForeignError(
                f"{path} has {token['content']!r} at {token['id']}, where it cannot stand: another token does, or "
                f"the id before is nobody's, and it would become {found}; {SAVE}"
            )
    return base


@contextmanager
def _unheard() -> Iterator[None]:
    """For SentencePiece's table of characters: where it is broken the library panics, and Rust prints that itself."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _read[Found](path: Path, read: Callable[[], Found]) -> Found:
    try:
        return read()
    except BaseException as error:  # the library has no type of its own, and its panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        known = described(head_of(path))
        if known and not known.startswith("is text"):
            raise ForeignError(f"{path} {known}") from None
        reason = " ".join(str(error).split())[:200]
        raise ForeignError(f"{path} is no tokenizer ({reason}); fetch it again, or: {SAVE}") from None


def _refuse_shared_ids(vocabulary: dict[str, int]) -> None:
    """Raises ValueError where two tokens have one id: what is written would not be what was read."""
    if len(set(vocabulary.values())) == len(vocabulary):
        return
    first: dict[int, str] = {}
    for token, index in vocabulary.items():
        if (other := first.setdefault(index, token)) != token:
            raise ValueError(f"{other!r} and {token!r} both have the id {index}; fetch the tokenizer again")


def _refuse_other_ids(folder: Path, where: Path, base: tokenizers.Tokenizer) -> None:
    """Raises ForeignError where another file of the folder has tokens that the tokenizer lacks, or at other ids: then
    rows of the table are another token's here than where the model was trained."""
    stated: list[tuple[Path, Any, Any]] = []
    if (settings := folder / "tokenizer_config.json").is_file() and isinstance(held := read_json(settings), dict):
        decoder = held.get("added_tokens_decoder")
        for index, token in decoder.items() if isinstance(decoder, dict) else ():
            stated.append((settings, token.get("content") if isinstance(token, dict) else token, index))
    if (added := folder / "added_tokens.json").is_file() and isinstance(held := read_json(added), dict):
        stated += [(added, token, index) for token, index in held.items()]
    for file, token, index in stated:
        if not isinstance(token, str) or (found := base.token_to_id(token)) == index or str(found) == index:
            continue
        place = "does not hold it" if found is None else f"has it at {found}"
        raise ForeignError(f"{file} has {token!r} at {index!s:.40}, {where} {place}: they are of two models; {SAVE}")


def _unknown(base: tokenizers.Tokenizer, vocabulary: dict[str, int]) -> tuple[int | None, bool]:
    """The id of whatever a vocabulary does not know, and whether there is nothing that it cannot say.

    Raises:
        ValueError: there is such text, and the tokenizer gives up at it.
    """
    model = base.model
    bytes_of = (f"<0x{byte:02X}>" for byte in range(256))
    if isinstance(model, models.BPE) and (
        vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
        or (model.byte_fallback and all(byte in vocabulary for byte in bytes_of))
    ):
        return None, True
    try:
        base.encode(STRANGE, add_special_tokens=False)
    except Exception as error:  # the library has no type of its own
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"the tokenizer has no token for words that it does not know ({reason}); set unk_token of its model to one "
            "of its tokens"
        ) from None
    if isinstance(model, models.Unigram):
        stated = json.loads(base.to_str())["model"]
        return stated.get("unk_id"), bool(stated.get("byte_fallback"))
    unknown = getattr(model, "unk_token", None)
    return (vocabulary.get(unknown) if unknown else None), False


def stated_eos(folder: Path) -> str:
    """The token that ends a sequence as ``tokenizer_config.json`` names it, empty where it does not.

    Raises:
        ForeignError: the file is something else.
    """
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return ""
    stated = read_json(settings)
    if not isinstance(stated, dict):
        raise ForeignError(f"{settings} is no configuration of a tokenizer")
    value = stated.get("eos_token") or ""
    value = value.get("content") if isinstance(value, dict) else value
    if not isinstance(value, str):
        raise ForeignError(f"{settings}: expected a token as eos_token, got {stated['eos_token']!r:.80}")
    return value


def _opt_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """OPT's repositories hold GPT-2's two files and no ``tokenizer.json``."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise FileNotFoundError(
            f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt (data.tokenizer): {SAVE}"
        )
    both = str(file_at(vocabulary)), str(file_at(merges))
    words = read_json(vocabulary)
    if not isinstance(words, dict) or not all(isinstance(index, int) and index >= 0 for index in words.values()):
        raise ForeignError(f"{vocabulary} is no vocabulary: expected tokens and their ids; fetch it again")
    base = tokenizers.Tokenizer(_read(merges, lambda: models.BPE.from_file(*both)))
    if base.token_to_id(OPT_PAD) is None or base.token_to_id(OPT_BEGIN) is None:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer.json, and its vocab.json is not OPT's (data.tokenizer): {SAVE}"
        )
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    return base
