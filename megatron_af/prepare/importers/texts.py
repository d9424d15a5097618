"""Texts that are not what somebody wrote: HTML that was left in, letters that a wrong encoding cost.

They are imported as they stand, for nobody knows what else was changed with them, and told of.

    for kind, text in odd_texts(row): ...
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from html.entities import html5

from megatron_af.data.rows import Row
from megatron_af.prepare.vocabulary import texts_of

HTML = "texts with HTML, which is learnt as it stands: undo it where they come from (html.unescape)"
LOST = "texts with U+FFFD in place of letters, which the table lost: save it as UTF-8 anew, from where it was whole"
TWICE = "texts whose UTF-8 was read as another encoding: save the table as UTF-8 anew, from where it was whole"

_ENTITY = re.compile(r"&(#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]{1,31};)")
_TAG = re.compile(
    r"<br\s*/?>|</(?:p|b|i|u|a|em|strong|div|span|sub|sup|li|ul|ol|font)>|<(?:p|a|div|span|font)\s[^<>]{0,200}>",
    re.IGNORECASE,
)
_TWICE = re.compile(
    "\u00c3[\u00a1-\u00bf]|\u00c2[\u00a0-\u00bf]|\u00e2\u20ac.|(?:[\u00d0\u00d1][^A-Za-z\u00c0-\u00ff\\s]){2}"
)
"""What UTF-8's letters with accents, its quotation marks and Cyrillic look like as Windows-1252."""


def odd_texts(row: Row) -> Iterator[tuple[str, str]]:
    """Each kind of odd text in a row once, with the text."""
    seen = set()
    for text in texts_of(row):
        if (kind := _kind(text)) and kind not in seen:
            seen.add(kind)
            yield kind, text


@lru_cache(maxsize=1024)  # options are the same in many rows
def _kind(text: str) -> str:
    if "&" in text and any(found[0] == "#" or found in html5 for found in _ENTITY.findall(text)):
        return HTML
    if "<" in text and _TAG.search(text):
        return HTML
    if text.isascii():
        return ""
    if "\ufffd" in text:
        return LOST
    return TWICE if _TWICE.search(text) else ""
