"""Rows with strong labels."""

from megatron_af.data.rows import Clip, Row, Span


def labelled(*spans: tuple[str, float, float], seconds: float = 10.0, number: int = 0) -> Row:
    made = tuple(Span(start=start, end=end, captions=(label,)) for label, start, end in spans)
    return Row(id=f"r{number}", clips=(Clip(path=f"{number}.wav", duration=seconds),), spans=made)
