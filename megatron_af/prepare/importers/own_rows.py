"""Our own rows from elsewhere, as JSON Lines or a JSON list: names below ``origin.audio``, durations may be missing."""

from collections.abc import Iterator

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Row, RowError, parse_row
from megatron_af.data.storage import DataRoot
from megatron_af.prepare.importers.layout import (
    Maker,
    Recordings,
    checked,
    failing,
    object_of,
    objects,
    said,
    seconds_of,
)


def own_rows(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    recordings = Recordings(root, origin.audio)

    def make(key: str, value: object) -> Row:
        content = object_of(value, "a row (an object with 'id', 'clips' and 'questions')")
        listed = content.get("clips", [])
        if not isinstance(listed, list):
            raise RowError(f"'clips' must be a list, got {said(listed)}")
        clips = []
        for item in listed:
            clip = object_of(item, "a clip (an object with 'path')")
            found = recordings.clip(clip.get("path"), seconds_of(clip, "start") or 0.0, seconds_of(clip, "duration"))
            clips.append({**clip, "path": found.path, "start": found.start, "duration": found.duration})
        return parse_row({**content, "clips": clips}, key)

    for number, item in objects(root, origin.path, is_one=lambda item: "clips" in item or "id" in item):
        yield failing(item) if isinstance(item, RowError) else checked(make, f"row {number}", item, "rows")
