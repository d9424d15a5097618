"""Two runs that were measured on the same benchmark."""

import dataclasses
from pathlib import Path

from megatron_af.data.shards import ShardWriter
from megatron_af.evaluate.answered import Answered, write_answered
from tests.data.toy import write_tone


def two(folder: Path, count: int = 30) -> tuple[Path, Path]:
    """The later one has won nine questions, lost one, and lacks the last; the earlier one lacks none."""
    write_tone(folder / "x.wav", 1.0, 0)
    with (folder / "x.tar").open("wb") as file, ShardWriter(file) as shard:
        offset, length = shard.add("0.wav", (folder / "x.wav").read_bytes())
    asked = [
        Answered(id=f"q{i}", group=f"g{i}", skill="", prompt=f"what <{i}>?", references=("rain",), answers=("rain",),
                 audio="gone.wav" if i == 2 else "x.wav", duration=1.0)
        for i in range(count)
    ]  # fmt: skip
    asked[1] = dataclasses.replace(asked[1], audio="x.tar", offset=offset, length=length)
    before = [None if i < 3 else float(i >= 9) for i in range(count)]
    now = [1.0 if i < 9 or i > 9 else 0.0 for i in range(count)]
    said = [one.answers if s else ("wind & <b>",) for one, s in zip(asked, before, strict=True)]
    wrong = [dataclasses.replace(one, answers=answers) for one, answers in zip(asked, said, strict=True)]
    write_answered(folder / "before/suite-toy.parquet", wrong, {"exact": before, "cider": [0.5] * count})
    write_answered(folder / "now/suite-toy.parquet", asked[:-1], {"exact": now[:-1], "letter": now[:-1]})
    write_answered(folder / "now/suite-other.parquet", asked, {"exact": now})
    return folder / "now", folder / "before"
