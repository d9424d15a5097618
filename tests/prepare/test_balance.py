"""Right options stand as often at each place, and none is right much more often than its share."""

from collections import Counter

from megatron_af.data.rows import Question, Row
from megatron_af.prepare.balance import balanced, fair


def test_places_differ_by_one_at_most_in_every_skill() -> None:
    rows = [
        Row(
            id=str(i),
            questions=(
                Question(prompt="a?", output="w", skill="s", options=("w", "x", "y", "z")),
                Question(prompt="b?", output="w", skill="t" if i % 3 else "u", options=("w", "x")),
                Question(prompt="c?", output="free"),
            ),
        )
        for i in range(101)
    ]
    made = balanced(rows, 0)
    for skill, options in (("s", 4), ("t", 2), ("u", 2)):
        places = Counter(q.options.index("w") for row in made for q in row.questions if q.skill == skill)
        assert len(places) == options and max(places.values()) - min(places.values()) <= 1, (skill, places)
    assert all(set(row.questions[0].options) == set("wxyz") and row.questions[2].options == () for row in made)
    assert made == balanced(rows, 0) and made != balanced(rows, 1)
    assert len({row.questions[0].options for row in made}) > 12, "the wrong ones move as well"


def test_an_answer_that_is_usually_right_is_thinned_out() -> None:
    def counted(i: int) -> Question:
        times = 1 if i % 10 < 7 else 2 + i % 3
        return Question(prompt="how many?", output=str(times), skill="c", options=("1", "2", "3", "4"))

    rows = [Row(id=str(i), questions=(counted(i), Question(prompt="why?", output=f"so {i}"))) for i in range(400)]
    made, left_out = fair(rows, 0)
    asked = [q for row in made for q in row.questions if q.skill == "c"]
    right = Counter(q.output for q in asked)
    assert left_out == 400 - len(asked) and right["1"] <= len(asked) / 4 + 3
    assert max(right.values()) - min(right.values()) < 0.25 * len(asked)
    assert sum(len(row.questions) for row in made) - len(asked) == 400, "open questions stay"
    assert fair(rows, 0) == (made, left_out)
