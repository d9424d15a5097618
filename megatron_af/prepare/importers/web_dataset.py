"""WebDatasets: tar files whose members share the name up to the first dot; the audio is used in place.

A tar that is broken, compressed or no tar is one bad row that names it; the others are read, and of a cut one what
lies before the cut.
"""

import itertools
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dali_pipes.waves import AudioError, recording_seconds
from megatron_af.config import ImportConfig
from megatron_af.data.rows import Clip, Row, RowError, parse_row
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, described, head_of, is_litter, no_file, opened, parse_json
from megatron_af.prepare.importers.layout import (
    Maker,
    Noted,
    PassedOver,
    checked,
    failing,
    is_audio,
    object_of,
    said,
    seconds_of,
    stated_part,
)
from megatron_af.prepare.importers.made_rows import NO_CAPTION, captioned

TEXTS = ("json", "txt", "cls")
_CLOSE = 0.1
"""Seconds by which stated times and a recording's length may differ."""
LARGEST_TEXT = 16 << 20
"""Bytes of a member that is text; more is none."""


@dataclass
class _Sample:
    audio: list[tuple[int, int]] = field(default_factory=list)
    """Offset and length of each recording in the tar."""
    texts: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""


def web_dataset(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    pattern = root.local(origin.path)
    if pattern is None:
        raise ForeignError(f"{root}: tar files are imported from a local data.root; copy or mount them")
    shards = sorted(shard for shard in Path(pattern.parent).glob(pattern.name) if not is_litter(shard.name))
    if not shards:
        raise ForeignError(f"{root}/{origin.path}: no such tar files")
    for shard in shards:
        yield from _shard(root, origin, shard, str(PurePosixPath(origin.path).with_name(shard.name)))


def _shard(root: DataRoot, origin: ImportConfig, shard: Path, path: str) -> Iterator[Maker]:
    samples: dict[str, _Sample] = {}
    passed: list[PassedOver] = []
    broken = ""
    try:
        with opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _add(samples, passed, tar, member, path)
            if tar.offset > shard.stat().st_size:
                broken = "ends inside a member"
            elif _goes_on(file, tar.offset):
                broken = "goes on behind its end, as several tars do that were joined; unpack and pack it anew"
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError):
        kind = no_file(shard)
        known = f"is {kind}, no file" if kind else described(head_of(shard))
        broken = known or ("is cut or damaged" if samples else "is no tar")

    places = {place for sample in samples.values() for place in sample.audio}

    def make(key: str, sample: _Sample) -> Row:
        if sample.problem:
            raise RowError(sample.problem)
        content = _content(sample.texts)
        if (prepared := _prepared(content, key)) is not None:
            if lost := [clip for clip in prepared.clips if (clip.offset, clip.length) not in places]:
                raise RowError(
                    f"its json says that a recording of {lost[0].length:,} bytes begins at byte {lost[0].offset:,} of "
                    "the tar, and none does: import the shard as prepare wrote it"
                )
            return replace(prepared, clips=tuple(replace(clip, path=path) for clip in prepared.clips))
        clips = []
        for offset, length in sample.audio:
            try:
                seconds = recording_seconds(root.read(path, offset, length))
            except AudioError as error:
                raise AudioError(f"{path}, {key}: its recording {error}", error.reason) from error
            clips.append(Clip(path=path, duration=seconds, offset=offset, length=length))
        return _row(key, tuple(clips), content, sample.texts, origin)

    for key, sample in samples.items():
        yield checked(make, key, sample, "samples of a WebDataset")
        yield from _other_words(key, sample.texts)
        for _ in sample.audio[1:] if sample.problem else ():  # each counts as lost, not the key that they share
            yield failing(RowError(f"{key}: another recording of this key: it {sample.problem}"))
    yield from map(failing, passed)
    if broken:
        lost = f"; what lies behind {list(samples)[-1]} in it is lost" if samples else ""
        yield failing(RowError(f"{path} {broken}{lost}"))


def _goes_on(file: IO[bytes], end: int) -> bool:
    """Whether anything but zeros follows the two blocks of zeros that end a tar."""
    file.seek(end)
    return any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b""))


def _add(
    samples: dict[str, _Sample], passed: list[PassedOver], tar: tarfile.TarFile, member: tarfile.TarInfo, path: str
) -> None:
    if member.isdir() or is_litter(member.name):
        return
    if not member.isreg() or member.issparse():
        passed.append(
            PassedOver(f"{path}:{member.name}", "is a link or a device, or has holes: only plain files count")
        )
        return
    name = PurePosixPath(member.name)
    stem, _, suffix = name.name.partition(".")
    key, suffix = str(name.parent / stem), suffix.lower()
    kind = suffix.rpartition(".")[2]
    if is_audio(f"x.{kind}"):
        samples.setdefault(key, _Sample()).audio.append((member.offset_data, member.size))
    elif kind in TEXTS:
        sample = samples.setdefault(key, _Sample())
        if suffix in sample.texts or suffix != kind:
            sample.problem = (
                f"has the text {name.name!r}, whose key ends at its first dot: rename its members to have one dot each"
                if suffix != kind
                else f"has two members {name.name!r}"
            )
        elif member.size > LARGEST_TEXT:
            sample.problem = f"has a text of {member.size:,} bytes ({name.name}); {LARGEST_TEXT:,} are the most"
        elif (file := tar.extractfile(member)) is not None:
            sample.texts[suffix] = file.read()
    else:
        passed.append(
            PassedOver(f"{path}:{member.name}", f"is neither a recording nor {', '.join(TEXTS)} by its suffix")
        )


def _row(
    key: str, clips: tuple[Clip, ...], content: Mapping[str, Any], texts: Mapping[str, bytes], origin: ImportConfig
) -> Row:
    if _is_own(content):
        return replace(parse_row({**content, "clips": []}, key), clips=clips)
    if not clips:
        raise RowError("has no recording in the tar")
    if len(clips) > 1:
        raise RowError(f"has {len(clips)} recordings, and a text that belongs to one")
    _check_part(content, clips[0].duration)
    captions = next(filter(None, _captions(content, texts)), [])
    if not captions:
        raise RowError("has neither a json with text, caption or captions, nor a txt, beside the recording")
    return captioned(key, clips[0], captions, origin)


def _content(texts: Mapping[str, bytes]) -> Mapping[str, Any]:
    return object_of(parse_json(texts["json"], "its json")) if "json" in texts else {}


def _is_own(content: Mapping[str, Any]) -> bool:
    """Whether it is a row of our own, as in prepared shards."""
    return "id" in content and bool({"questions", "captions", "spans"} & set(content))


def _prepared(content: Mapping[str, Any], key: str) -> Row | None:
    """A row that says itself where in its shard its recordings lie: several rows may share one."""
    listed = content.get("clips")
    if not _is_own(content) or not isinstance(listed, list) or not listed:
        return None
    return parse_row(content, key) if all(isinstance(c, dict) and c.get("length") for c in listed) else None


def _captions(content: Mapping[str, Any], texts: Mapping[str, bytes]) -> Iterator[list[str]]:
    """What each place says that may say something, the first that does is taken."""
    for key in ("text", "caption", "captions", "txt"):
        given = _text(texts.get("txt", b"")) if key == "txt" else content.get(key)
        captions = given if isinstance(given, list) else [given or ""]
        if not all(isinstance(caption, str) for caption in captions):
            raise RowError(f"{key!r} must be text or a list of texts, got {said(given)}")
        yield [text for caption in captions if (text := caption.strip()) and text.lower() not in NO_CAPTION]


def _other_words(key: str, texts: Mapping[str, bytes]) -> Iterator[Maker]:
    """A note where places that are not taken say something else than the one that is."""
    if "json" not in texts:
        return
    with suppress(RowError, ForeignError):  # told of with its row
        content = _content(texts)
        taken, *others = [found for found in _captions(content, texts) if found] or [[]]
        if not _is_own(content) and (more := set(itertools.chain(*others)) - set(taken)):
            kind = "samples whose text, caption, captions and txt say different things: the first of these is taken"
            yield failing(Noted(kind, f"{key}: {said(taken[0])} is taken, and not {said(min(more))}"))


def _check_part(content: Mapping[str, Any], seconds: float) -> None:
    """`RowError` where a part of this recording is stated; times that go beyond it are those that it was cut out at."""
    times: dict[str, float] = {}
    for key, value in content.items():
        if isinstance(value, str | int | float) and stated_part({key: value}, ()):
            with suppress(RowError):  # a time as none is read here says nothing
                times[key] = seconds_of(content, key) or 0.0
    inside = [key for key, time in times.items() if 0 < time < seconds - _CLOSE]
    if inside and max(times.values()) <= seconds + _CLOSE:
        raise RowError(
            f"its json states a part of the recording in {inside[0]!r}, and a WebDataset's recordings are taken whole: "
            "cut it out, or take the key out"
        )


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise RowError("its txt is not UTF-8") from None
