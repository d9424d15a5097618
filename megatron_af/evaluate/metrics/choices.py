"""Which option an answer means: by its words, by a letter, or by how likely the model finds each.

``match`` follows the official matcher of MMAU (and MMAR): an answer is right where all words of the right option occur
in it and no word that only wrong options have. It cannot tell options apart whose words are part of another's;
``letter`` and ``likelihood`` can.
"""

import re
from collections.abc import Sequence

from megatron_af.evaluate.answered import Said
from megatron_af.evaluate.exchange import plain_answer
from megatron_af.evaluate.lettered_options import LETTERS, bare_answer
from megatron_af.evaluate.metrics.base import Metric, Scores, percent

_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_MARKED = re.compile(
    r"\(([A-Za-z])\)|^\W*([A-Za-z])[).:,](?=\s|$)|\b(?i:answer|option|choice)\s*(?:is\s*:?|:)?\s*\(?([A-Z]|[b-hB-H])\b"
)


class Exact(Metric):
    """The answer is a reference, but for case and spaces."""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        return {"exact": percent([plain_answer(s.heard) in map(plain_answer, s.references) for s in said])}


class Match(Metric):
    """The official matcher of MMAU; without options, all words of some reference occur in the answer.

    Unparseable: an answer that holds the words of no option, or of several that are no parts of each other.
    """

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        return {"match": percent([_matched(s) for s in said])}


class Letter(Metric):
    """The letter of the right option, or the option itself; unparseable: an answer that says neither."""

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        return {"letter": percent([_lettered(s) for s in said])}


class Likelihood(Metric):
    """The right option is the likeliest answer, by log-probability for each character (options differ in length);
    unparseable: a question that could not be scored."""

    of_wordings = False

    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        return {"likelihood": percent([_likeliest(s) for s in said])}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _matched(said: Said) -> float | None:
    heard = _words(said.heard)
    if not heard:
        return None
    if not said.options:
        return float(any(words <= heard for reference in said.references if (words := _words(reference))))
    right = _words(said.references[0])
    wrong = set().union(*(_words(option) for option in said.options if plain_answer(option) != _wanted(said)))
    if right <= heard and not heard & (wrong - right):
        return 1.0
    meant = [words for option in said.options if (words := _words(option)) and words <= heard]
    largest = [words for words in meant if not any(words < other for other in meant)]
    return 0.0 if len(largest) == 1 else None


def _lettered(said: Said) -> float | None:
    apart = len({bare_answer(option) for option in said.options}) == len(said.options)
    bare = bare_answer if apart else plain_answer  # "Really?" and "Really!" are told apart by their marks alone
    options = [bare(option) for option in said.options]
    heard, wanted = bare(said.heard), bare(said.references[0])
    if not options or not heard:
        return None
    if heard in options:
        return float(heard == wanted)
    found = [_ALONE.fullmatch(said.heard)] if _ALONE.fullmatch(said.heard) else [*_MARKED.finditer(said.heard)]
    meant = {_option(match, options) for match in found if match}
    if len(meant) != 1 or (option := meant.pop()) is None:
        return None
    return float(option == wanted)


def _option(mark: re.Match[str], options: Sequence[str]) -> str | None:
    """The one of its letter; but in "the answer is C major" the letter may begin the words of one."""
    assert mark.lastindex
    behind = plain_answer(mark.string[mark.start(mark.lastindex) :])
    if spelt := [option for option in options if len(option) > 1 and behind.startswith(option)]:
        return max(spelt, key=len)
    place = LETTERS.index(mark[mark.lastindex].upper())
    return options[place] if place < len(options) else None


def _likeliest(said: Said) -> float | None:
    if not said.logprobs or not said.options:
        return None
    rated = [logprob / max(1, len(option)) for logprob, option in zip(said.logprobs, said.options, strict=True)]
    return float(plain_answer(said.options[rated.index(max(rated))]) == _wanted(said))


def _wanted(said: Said) -> str:
    return plain_answer(said.references[0])
