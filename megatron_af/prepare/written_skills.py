"""Questions that need more than labels, written by a language model from what is known (``generation.py``).

    report = generate(WrittenSkill("contextual_sound"), config)

What is known are strong labels, captions, and ``meta.transcript``. A reply is used where its options differ, hold the
answer, and rest on labels that are there; a second request, which shows question and facts but not the answer, must
find the same option (:class:`SelfCheck`). Rows that do not come through are refused with the reason.
"""

from typing import Any

from megatron_af.data.rows import Question, Row
from megatron_af.prepare.dialogues import GIVEN_AWAY, LONGEST_WORDS
from megatron_af.prepare.generation import Found, Task, plain_words
from megatron_af.prepare.strong_labels import heard

SHORT = {
    "attribute_identification": "an attribute of one sound: how it is made, its material, pitch, loudness or distance, "
    "as far as what is told implies it",
    "contextual_sound": "what the sounds together say of the scene: where it is, what is being done, what comes next",
    "contextual_speech": "what a speaker means, feels or does, where what is said and what is heard around it belong "
    "together",
    "information_extraction": "a fact that is said or heard somewhere in the recording, such as a name, a number, or "
    "who does what",
    "general_reasoning": "a conclusion that needs two or more of the things heard, and general knowledge",
}
"""Types of AudioSkills (Audio Flamingo 2, appendix C) -> what is asked for."""
LONG = {
    "captioning": "the whole recording, told in two to four sentences in the order of time",
    "plot": "how the recording develops: what leads to what, from its beginning to its end",
    "needle": "one short event that is heard once in the whole recording",
    "subscene": "one part of the recording, named by what is heard at its beginning",
    "temporal": "which of several things comes before, after or at the same time as another",
    "general": "a conclusion that needs things from different parts of the recording",
}
"""Tasks of LongAudio -> what is asked for."""
OPEN = ("captioning",)
"""Asked without options."""
INSTRUCTIONS = """\
You write questions for people who hear a recording and see nothing. For each recording in the list you are told what \
is heard in it. Write one question about {about}.
{form}Only who hears the recording may be able to answer: nothing in the question or in the options gives the answer \
away. Say nothing that cannot be known from what is told, and never mention labels, captions, transcripts or exact \
seconds.
Answer with JSON only, one entry for every id; evidence lists the sounds that the answer rests on, in the words that \
you were told:
{{"questions": [{{"id": 0, "question": "…", "answer": "…", "options": [{options}], "evidence": ["…"]}}]}}"""
CHOICES = (
    "Write four options, one of which is the answer; the others are plausible, of the same kind and length, and wrong. "
)
CHECKING = """\
For each recording in the list you are told what is heard in it, and a question with options. Choose the option that \
what is told supports. If none or several are supported, choose null.
Answer with JSON only, one entry for every id: {"answers": [{"id": 0, "answer": "…"}]}"""


class WrittenSkill(Task):
    """
    Args:
        kind: of ``SHORT`` or ``LONG``.
    """

    reply_key = "questions"

    def __init__(self, kind: str) -> None:
        self.kind, self._open = kind, kind in OPEN
        about = (SHORT | LONG)[kind]
        options = "" if self._open else '"…", "…", "…", "…"'
        form = "" if self._open else CHOICES
        self.instructions = INSTRUCTIONS.format(about=about, form=form, options=options)
        self.settings = (kind,)

    def asked(self, row: Row) -> dict[str, Any] | str:
        return known(row)

    def check(self, entry: dict[str, Any], row: Row) -> Found | str:
        question, answer = entry.get("question"), entry.get("answer")
        options, evidence = entry.get("options") or [], entry.get("evidence")
        given = [question, answer, *options] if isinstance(options, list) else [None]
        texts = [text for text in given if isinstance(text, str) and text.strip()]
        if len(texts) < len(given) or not isinstance(question, str) or not isinstance(answer, str):
            return "question, answer and options must be texts"
        plain = [plain_words(option) for option in options]
        if not self._open:
            if len(options) != 4 or len(set(plain)) != 4:
                return f"{len(set(plain))} different options instead of 4"
            if plain_words(answer) not in plain:
                return "the answer is none of the options"
            if any(f" {a} " in f" {b} " for a in plain for b in plain if a != b):
                return "an option contains another one"
            if f" {plain_words(answer)} " in f" {plain_words(question)} ":
                return "the question says the answer"
        if any(len(text.split()) > LONGEST_WORDS for text in texts):
            return f"a text has more than {LONGEST_WORDS} words"
        said = [f" {plain_words(text)} " for text in texts]
        if given_away := next((phrase for phrase in GIVEN_AWAY for text in said if f" {phrase} " in text), None):
            return f"it says {given_away!r}: written about, not heard"
        if not isinstance(evidence, list) or not evidence:
            return "evidence is missing: nothing says what the answer rests on"
        there = [f" {plain_words(text)} " for text in told(row)]
        for text in evidence:
            words = plain_words(str(text))
            if not words or not any(f" {words} " in one for one in there):
                return "evidence names what is not heard there"
        chosen = answer.strip() if self._open else options[plain.index(plain_words(answer))].strip()
        return {"question": question.strip(), "answer": chosen, "options": [option.strip() for option in options]}

    def made(self, row: Row, found: Found) -> Row:
        skill = self.kind.replace("_", " ")
        asked = Question(
            prompt=found["question"], output=found["answer"], skill=skill, options=tuple(found["options"])
        )
        return Row(
            id=row.id, clips=row.clips, questions=(asked,), spans=row.spans, captions=row.captions, meta=row.meta
        )


class SelfCheck(Task):
    """Rows with one question each: is its answer the one that what is known supports?"""

    reply_key = "answers"
    instructions = CHECKING

    def asked(self, row: Row) -> dict[str, Any] | str:
        facts = known(row)
        if isinstance(facts, str):
            return facts
        question = row.questions[0]
        return {**facts, "question": question.prompt, "options": sorted(question.options)}

    def check(self, entry: dict[str, Any], row: Row) -> Found | str:
        wanted = row.questions[0].output
        if not isinstance(entry.get("answer"), str):
            return "the check finds no option, or several"
        return {} if plain_words(entry["answer"]) == plain_words(wanted) else "the check finds another option"

    def made(self, row: Row, found: Found) -> Row:
        return row


def known(row: Row) -> dict[str, Any] | str:
    """What a language model is told of a recording; a text: why nothing can be."""
    if len(row.clips) != 1:
        return f"the row has {len(row.clips)} clips, a question is about one"
    facts: dict[str, Any] = {"seconds": row.clips[0].duration}
    if row.spans:
        sounds = heard(row)
        if isinstance(sounds, str):
            return sounds
        facts["sounds"] = [{"sound": s.label, "begins": s.start, "ends": s.end} for s in sounds]
    if row.captions:
        facts["description"] = " ".join(row.captions)
    if row.meta.get("transcript"):
        facts["transcript"] = row.meta["transcript"]
    return facts if len(facts) > 1 else "nothing is known of the recording: no spans, captions or transcript"


def told(row: Row) -> list[str]:
    """All texts that are known of a recording."""
    return [*(text for span in row.spans for text in span.captions), *row.captions, str(row.meta.get("transcript", ""))]
