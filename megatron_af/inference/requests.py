"""What people ask a served model, as rows.

    with RequestRows() as requests:
        rows = [requests.row(request, f"request {i}") for i, request in enumerate(batch)]

A request is a mapping:

    prompt     what to answer
    decoding   how, as in `decoding.Decoding`: {"temperature": 0.7, "seed": 3, …}
    audio      a file (text or Path), a ``data:`` URI, base64 or bytes of a recording; absent: text only
    history    earlier turns about the audio: [{"user": …, "assistant": …}, …]
    examples   answered examples that come first: [{"audio": …, "prompt": …, "answer": …}, …]

Whoever answers strangers says which files they may name: `files_below` a folder, or `no_files`.
"""

import base64
import itertools
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import yaml

from dali_pipes.waves import AudioError, recording_seconds, samples_a_second
from megatron_af.config.errors import suggestion
from megatron_af.data.rows import Clip, Question, Row, is_unicode
from megatron_af.inference.decoding import Decoding

KEYS = ("prompt", "audio", "history", "examples", "decoding", "options", "id")
"""Of a request; the last two are read by who answers a file of them."""
_BASE64 = str.maketrans("-_", "+/", "\r\n\t")
"""What base64 in URLs has for two letters, and what stands between lines."""
_FOLDED = re.compile(r"[ \t]*[\r\n]+[ \t]*")
"""The ends of its lines, and what mail programs put around them."""

FULL_RATE = 96_000
"""Samples a second of 48 kHz stereo. A few kilobytes of silence may be hours of 255 channels, and are decoded whole."""
_SHORTEST = 64
"""Letters of the smallest recording; what is shorter, and no multiple of four, is a name: ``/etc/passwd``."""

type Opens = Callable[[str], Path | None]
"""The file that a request's text names, or None where it names none that may be opened."""


class BadRequest(ValueError):
    """A request that cannot be answered; the message names it, what was expected and what it held."""


class TooLarge(BadRequest):
    """A request of more than is accepted."""


def own_files(name: str) -> Path | None:
    """Any file, for whoever runs this process."""
    return _file(Path(name))


def no_files(name: str) -> Path | None:
    return None


def files_below(folder: Path) -> Opens:
    """Files in and below ``folder``, by names that are relative to it or absolute; links out of it are not followed."""
    inside = folder.resolve()

    def opens(name: str) -> Path | None:
        file = _file(inside / name)
        return file if file is not None and file.is_relative_to(inside) else None

    return opens


def _file(path: Path) -> Path | None:
    try:
        return path.resolve() if path.is_file() else None
    except (OSError, ValueError):  # no name of a file: too long, or with a zero byte
        return None


class RequestRows:
    """Turns requests into rows over a folder of its own, ``root``, which goes when it is closed.

    Args:
        opens: which file a text names.
        max_seconds: of one recording; one of more than ``FULL_RATE`` samples a second may be as much shorter.
    """

    def __init__(self, opens: Opens = own_files, *, max_seconds: float = math.inf) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="audio-flamingo-")
        self.root = Path(self._folder.name)
        self._opens, self._max_seconds = opens, max_seconds
        self._clips = itertools.count()  # several threads may ask at once

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._folder.cleanup()

    def row(self, request: Mapping[str, Any], where: str) -> Row:
        """The row whose last question is the request's. Raises ``BadRequest``, whose message begins with ``where``."""
        _check_keys(request, KEYS, "a request", where)
        prompt = _text(request, "prompt", where)
        history, examples = _records(request, "history", where), _records(request, "examples", where)
        audio = request.get("audio")
        if history and examples:
            raise BadRequest(f"{where}: expected history or examples, got both; ask about one conversation at a time")
        asked = Question(prompt=prompt, output="")
        clips = () if is_absent(audio) else (self._clip(audio, f"{where}: audio"),)
        for i, turn in enumerate(history):
            _check_keys(turn, ("user", "assistant"), "a turn", f"{where}: history[{i}]")
        for i, example in enumerate(examples):
            _check_keys(example, ("audio", "prompt", "answer"), "an example", f"{where}: examples[{i}]")
        if history:
            turns = [
                Question(prompt=_text(turn, "user", at), output=_text(turn, "assistant", at, may_be_empty=True))
                for at, turn in ((f"{where}: history[{i}]", turn) for i, turn in enumerate(history))
            ]
            return Row(id=where, clips=clips, questions=(*turns, asked), template="dialogue")
        if not examples:
            return Row(id=where, clips=clips, questions=(asked,))
        if not clips:
            raise BadRequest(f"{where}: expected audio behind its examples, got none")
        pairs = []
        for i, example in enumerate(examples):
            at = f"{where}: examples[{i}]"
            answered = Question(prompt=_text(example, "prompt", at), output=_text(example, "answer", at))
            pairs.append((self._clip(example.get("audio"), f"{at}: audio"), answered))
        return Row(
            id=where,
            clips=(*(clip for clip, _ in pairs), *clips),
            questions=(*(question for _, question in pairs), asked),
            template="interleaved",
        )

    def forget(self, row: Row) -> None:
        """Removes the recordings of a row that was answered."""
        for clip in row.clips:
            (self.root / clip.path).unlink(missing_ok=True)

    def recording(self, audio: Any, where: str) -> Row:
        """A row of one recording and nothing said about it. Raises ``BadRequest``."""
        return Row(id=where, clips=(self._clip(audio, where),))

    def _clip(self, audio: Any, where: str) -> Clip:
        """The recording, whole, under a name of ours: a request names no file inside our folder."""
        place = self.root / f"{next(self._clips):06d}"
        path = named_file(audio, self._opens)
        if path is not None:
            place.symlink_to(path)
        else:
            place.write_bytes(_content(audio, where))
        try:
            seconds, rate = recording_seconds(place), samples_a_second(place)
        except AudioError as error:
            place.unlink()
            raise BadRequest(f"{where}: expected a recording, got what cannot be decoded: {error}") from None
        if seconds > self._max_seconds:
            place.unlink()
            raise TooLarge(f"{where}: expected at most {self._max_seconds:g} s, got a recording of {seconds:.1f} s")
        if seconds * rate > (most := self._max_seconds * FULL_RATE):
            place.unlink()
            raise TooLarge(
                f"{where}: expected at most {most:,.0f} samples, got {seconds:.1f} s of {rate:,} a second in all "
                "channels; mix it down, or resample it"
            )
        return Clip(path=place.name, duration=seconds)


def named_file(audio: Any, opens: Opens = own_files) -> Path | None:
    """The file that a request's audio names, and None for one that comes in the request."""
    if not isinstance(audio, str | Path) or str(audio)[:5].lower() == "data:":
        return None
    name = str(audio)
    if not name.startswith("file://"):
        return opens(name)
    name = name.removeprefix("file://").removeprefix("localhost")
    return opens(name) or opens(unquote(name))


def _content(audio: Any, where: str) -> bytes:
    if isinstance(audio, bytes | bytearray | memoryview):
        return bytes(audio)
    if isinstance(audio, Path):
        raise BadRequest(f"{where}: expected a file, got {str(audio)!r}, which does not exist")
    if not isinstance(audio, str) or not audio:
        raise BadRequest(f"{where}: expected a file, base64 or bytes, got {type(audio).__name__}")
    try:
        return from_base64(audio)
    except ValueError:
        raise BadRequest(f"{where}: expected a file, base64 or bytes, got {audio[:60]!r}, which is neither") from None


def from_base64(text: str) -> bytes:
    """Bytes out of base64 as clients send it: behind ``data:…,``, in lines, in URLs' letters, without its ``=``.

    Raises:
        ValueError: it is none; the message says where it ends to be one.
    """
    if text[:5].lower() == "data:":
        text = unquote(text.partition(",")[2])
    whole = _FOLDED.sub("", text.strip()).translate(_BASE64)
    plain = whole.rstrip("=")
    if odd := re.search("[^A-Za-z0-9+/]", plain):
        cure = "; '+' becomes a space where a form's field is read: send it as JSON" if odd[0] == " " else ""
        raise ValueError(f"{odd[0]!r} behind {odd.start():,} of its letters is none{cure}")
    if len(plain) % 4 == 1 or (len(whole) % 4 and len(plain) < _SHORTEST):
        raise ValueError(f"it is cut: {len(plain):,} letters are no whole number of bytes")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def _check_keys(given: Mapping[str, Any], known: Sequence[str], what: str, where: str) -> None:
    """Refuses what would be dropped in silence."""
    for name, value in given.items():
        if name not in known and not is_absent(value):
            raise BadRequest(f"{where}: {name}: no key of {what}{suggestion(str(name), known)}")


def _records(request: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    value: Any = request.get(key)
    if is_absent(value):
        return []
    records = value.tolist() if hasattr(value, "tolist") else value  # a table's cell holds an array
    if not isinstance(records, list | tuple) or not all(isinstance(record, Mapping) for record in records):
        raise BadRequest(f"{where}: {key}: expected a list of mappings, got {str(value)[:80]}")
    return list(records)


def _text(record: Mapping[str, Any], key: str, where: str, *, may_be_empty: bool = False) -> str:
    """
    Args:
        may_be_empty: as the answer of a model that said nothing, whose conversation goes on.
    """
    value = record.get(key)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise BadRequest(f"{where}: {key}: expected text, got {str(value)[:80]!r}")
    check_unicode(value, f"{where}: {key}: ")
    return value


def check_unicode(text: str, where: str = "") -> None:
    """Raises ``BadRequest`` for half of a surrogate pair, as which Python hands on a byte that is no UTF-8."""
    if not is_unicode(text):
        raise BadRequest(f"{where}expected UTF-8, got {text[:80]!r}: where it comes from has another encoding")


def read_decoding(given: Mapping[str, Any], where: str = "") -> Decoding:
    """How an answer is decoded. Raises ``BadRequest``."""
    names = [field.name for field in fields(Decoding)]
    for name in given:
        if name not in names:
            raise BadRequest(f"{where}{name}: no setting of an answer{suggestion(name, names)}")
    stop = given.get("stop")
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list | tuple) else ()
    if stop is not None and not isinstance(stop, str | list | tuple):
        raise BadRequest(f"{where}stop: expected a text or a list of texts, got {stop!r}")
    decoding = Decoding(**{**given, "stop": texts})
    if problem := next(decoding.problems(), None):
        raise BadRequest(where + problem)
    return decoding


def own_decoding(request: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a request itself says about how it is decoded. Raises ``BadRequest``."""
    own = request.get("decoding")
    if is_absent(own):
        return {}
    if not isinstance(own, Mapping):
        raise BadRequest(f"{where}decoding: expected a mapping such as {{'temperature': 0.7}}, got {str(own)[:80]!r}")
    return dict(own)


def decoding_of(request: Mapping[str, Any], given: Mapping[str, Any], where: str) -> Decoding:
    """How a request is decoded: as it says itself, and else as ``given``. Raises ``BadRequest``."""
    return read_decoding({**given, **own_decoding(request, where)}, where)


def check_options(options: Any) -> None:
    """Raises ``BadRequest`` for what is no list of texts that differ."""
    texts = isinstance(options, list | tuple) and all(isinstance(one, str) and one for one in options)
    if not texts or not options or len(set(options)) < len(options):
        raise BadRequest(f"options: expected a list of texts that differ, got {options!r:.80}")
    check_unicode("".join(options), "options: ")


def settings_of(given: Sequence[str]) -> Decoding:
    """How answers are decoded, as somebody types it: ``["temperature=0.7", "stop=[a, b]"]``. Raises ``BadRequest``."""
    values = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals:
            raise BadRequest(f"{setting}: expected key=value, such as temperature=0.7")
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            values[name] = value
    return read_decoding(values)


def is_absent(value: Any) -> bool:
    """None, or the NaN that a table holds where a column has no value."""
    return value is None or (isinstance(value, float) and value != value)
