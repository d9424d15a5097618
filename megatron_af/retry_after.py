"""How long a busy server asks to be left alone: HTTP's ``Retry-After``, seconds or a date (RFC 9110, section 10.2.3).

    asked = retry_after(error.headers.get("Retry-After"))
    pause = 2.0 if asked is None else asked
"""

import re
import time
from email.utils import parsedate_to_datetime

LONGEST = 300.0
"""Seconds that anybody waits for because a server says so: its date may be of another clock."""


def retry_after(value: str | None) -> float | None:
    """Seconds from now on, `LONGEST` at most; None where nothing, or nothing that can be read, was asked for."""
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        return min(float(text), LONGEST)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), LONGEST)
    except (ValueError, OverflowError, OSError):
        return None
