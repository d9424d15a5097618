"""A model of the text finds what the text gives away, and nothing where it gives nothing away."""

import random
from dataclasses import replace

from megatron_af.data.rows import Clip, Question, Row
from megatron_af.prepare.text_leak import text_leak

WORDS = ["dog", "rain", "bell", "car", "wind", "door"]


def rows(leaking: bool, count: int = 240) -> list[Row]:
    rng, made = random.Random(0), []
    for i in range(count):
        options = rng.sample(WORDS, 4)
        answer = "dog" if leaking and "dog" in options else rng.choice(options)
        clip = Clip(path=f"{i}.wav", duration=1.0)
        question = Question(prompt="which one?", output=answer, skill="s", options=tuple(options))
        made.append(Row(id=str(i), clips=(clip,), questions=(question,)))
    return made


def test_a_leak_is_found_and_chance_is_not_one() -> None:
    leaks, none = text_leak(rows(leaking=True))["s"], text_leak(rows(leaking=False))["s"]
    assert leaks.right > 60 and leaks.chance == 25.0 and leaks.n == 240
    assert abs(none.right - none.chance) < 3 * none.error < 10
    assert "points above chance" in str(leaks)
    placed = [Row(id=r.id, clips=r.clips, questions=(Question(prompt="?", output=r.questions[0].options[2], skill="s",
                  options=r.questions[0].options),)) for r in rows(leaking=False)]  # fmt: skip
    assert text_leak(placed)["all"].right > 95, "its place"


def test_pieces_of_one_recording_never_teach_about_each_other() -> None:
    said = rows(leaking=False, count=60)
    told = [Row(id=f"{r.id}-{n}", clips=r.clips, questions=r.questions) for r in said for n in range(4)]
    assert text_leak(told)["all"].right < 45, "the same question about the same recording stands in one half"
    assert text_leak(said[:10]) == {}


def test_recordings_of_one_shard_are_several() -> None:
    def shard(rows: list[Row]) -> list[Row]:
        clips = [Clip(path="a.tar", offset=512 * (n + 1), length=9, duration=1.0) for n in range(len(rows))]
        return [replace(row, clips=(clip,)) for row, clip in zip(rows, clips, strict=True)]

    assert text_leak(shard(rows(leaking=True))) == text_leak(rows(leaking=True)) != {}
