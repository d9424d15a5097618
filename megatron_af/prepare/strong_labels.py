"""What is heard when in a recording, as strong labels say it: a row's spans, checked and joined.

    sounds = heard(row)             # [Sound(label="dog", start=0.5, end=2.0), …] in time order, or why there are none
"""

from collections import defaultdict
from dataclasses import dataclass

from megatron_af.data.rows import Row

TOLERANCE_SECONDS = 0.05
"""How far a label may reach beyond its recording: labels are rounded."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    label: str
    start: float
    """Seconds from the beginning of the clip."""
    end: float

    def overlaps(self, other: "Sound") -> bool:
        return self.start < other.end and other.start < self.end


def heard(row: Row) -> list[Sound] | str:
    """Spans of one label that overlap or touch are one sound: two people labelled it, or a label was cut."""
    if len(row.clips) != 1:
        return f"the row has {len(row.clips)} clips, strong labels are about one"
    if not row.spans:
        return "the row has no spans: nothing says what is heard when"
    seconds = row.clips[0].duration
    by_label: dict[str, list[Sound]] = defaultdict(list)
    for span in sorted(row.spans, key=lambda span: (span.start, span.end)):
        if span.end > seconds + TOLERANCE_SECONDS:
            return f"{span.captions[0]!r} is labelled until {span.end:g} s, and the recording ends at {seconds:g} s"
        label, known = span.captions[0].strip().lower(), by_label[span.captions[0].strip().lower()]
        if known and span.start <= known[-1].end:
            known[-1] = Sound(label=label, start=known[-1].start, end=max(known[-1].end, span.end))
        else:
            known.append(Sound(label=label, start=span.start, end=span.end))
    return sorted((one for some in by_label.values() for one in some), key=lambda s: (s.start, s.end, s.label))
