"""Rows with questions of two skills."""

from megatron_af.data.rows import Clip, Question, Row


def row(number: int, *prompts: str) -> Row:
    return Row(
        id=str(number),
        clips=(Clip(path=f"{number}.flac", duration=1.0),),
        questions=tuple(Question(prompt=p, output=f"{p} {number}", skill=p) for p in prompts),
    )


ROWS = [row(0, "first?", "last?"), row(1, "first?"), row(2, "first?", "alone?"), row(3, "last?")]
