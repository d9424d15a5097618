"""That growth is found, and that what stays is left alone."""

import pytest

from tests.faults.growth import Grows, Look, check, grown, line


def looks(memory: float = 0.0, handles: float = 0.0, threads: float = 0.0, processor: float = 0.0) -> list[Look]:
    """A run of 1,000 steps with so much more of each at its end; it warms up, and every third look is disturbed."""
    found, spent = [], 0.0
    for step in range(0, 1000, 10):
        share, noise = step / 1000, 5 * (step % 30 == 0)
        spent += 10 * (0.05 * (1 + processor * share) + 0.01 * noise)
        found.append(
            Look(
                step=step,
                memory={"ranks": 1000 + min(step, 100) + noise + memory * share, "launcher": 200.0},
                handles=90 + noise + int(handles * share),
                threads=30 + noise + int(threads * share),
                processor=spent,
            )
        )
    return found


def test_what_stays_passes() -> None:
    check(grown(looks()))


@pytest.mark.parametrize(("what", "much"), [("memory", 50.0), ("handles", 8.0), ("threads", 8.0), ("processor", 0.3)])
def test_what_grows_is_named(what: str, much: float) -> None:
    with pytest.raises(Grows, match="step" if what == "processor" else f"{what}.*in the middle"):
        check(grown(looks(**{what: much})))


def test_a_line_is_the_median_of_slopes() -> None:
    points = [(0, 1.0), (10, 2.0), (20, 3.0), (30, 100.0), (40, 5.0)]
    found = line(points)
    assert (found.middle, found.grows) == (3.0, 4.0)
