"""What a server may say of when to come again, and what it may not."""

import time
from email.utils import formatdate

import pytest

from megatron_af.retry_after import retry_after


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7.0), (" 1.5 ", 1.5), ("0", 0.0), (None, None), ("", None), ("soon", None), ("²", None),
                          ("-3", None), ("nan", None), ("9" * 400, 300.0), ("Wed, 99 Oct 2025 07:28:00 GMT", None)],
)  # fmt: skip
def test_seconds(said: str | None, seconds: float | None) -> None:
    assert retry_after(said) == seconds


def test_a_date_is_so_far_away() -> None:
    assert 50 < (retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0
    assert retry_after(formatdate(time.time() + 86_400, usegmt=True)) == 300
