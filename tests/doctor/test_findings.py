"""What is found is told with its fix, and the exit code says whether anything is broken."""

import pytest
from rich.console import Console

from megatron_af.doctor.findings import Finding, State, exit_code, table, verdict

WORKS = Finding(part="disk", state=State.WORKS, told="9 GiB free")
ABSENT = Finding(part="GPU", state=State.ABSENT, told="none")
SLOW = Finding(part="DALI", state=State.SLOW, told="torch makes the mel", fix="install it")
BROKEN = Finding(part="gloo", state=State.BROKEN, told="no answer", fix="open lo")


def test_only_what_is_broken_fails() -> None:
    assert [exit_code(found) for found in ([], [WORKS, ABSENT], [SLOW], [WORKS, BROKEN])] == [0, 0, 0, 2]


def test_the_sentence_names_what_to_look_at() -> None:
    assert verdict([WORKS, ABSENT]) == "Everything that training needs works."
    assert verdict([WORKS, SLOW]).endswith("works. Slower than it could be: DALI.")
    assert verdict([SLOW, BROKEN]) == "Broken: gloo. Mend that first."


def test_every_fix_stands_below_its_finding() -> None:
    console = Console(record=True, width=80)
    console.print(table([WORKS, SLOW, BROKEN]))
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert lines[1:] == [
        "disk  works   9 GiB free", "DALI  slow    torch makes the mel", "-> install it", "gloo  broken  no answer",
        "-> open lo",
    ]  # fmt: skip


@pytest.mark.parametrize("state", [State.SLOW, State.BROKEN])
def test_nothing_bad_is_told_without_a_fix(state: State) -> None:
    with pytest.raises(AssertionError, match="say what mends it"):
        Finding(part="x", state=state, told="bad")
