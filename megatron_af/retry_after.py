"""How long a busy server asks to be left alone: HTTP's ``Retry-After``, seconds or a date (RFC 9110, section 10.2.3).

    pause = retry_after(error.headers.get("Retry-After")) or 2.0
"""

import math
import re
import time
from email.utils import parsedate_to_datetime


def retry_after(value: str | None) -> float:
    """Seconds from now on; 0 where nothing, or nothing that can be read, was asked for."""
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        seconds = float(text)
        return seconds if math.isfinite(seconds) else 0.0
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return 0.0
