"""The plans that the documentation shows are those that the tool makes."""

import pytest

from tests.plan.documented import FIRST, LAST, PAGE, written


@pytest.mark.slow
def test_the_pages_tables_are_the_plans() -> None:
    page = PAGE.read_text()
    found = page[page.index(FIRST) : page.index(LAST)]
    assert found == written(), "python -m tests.plan.documented writes them anew"
