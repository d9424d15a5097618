"""Conversations about recordings, written by a language model from what is known of them (``generation.py``).

    report = write_dialogues(DialogueConfig(source="audioset_sl.jsonl", output="dialogues.jsonl", endpoint=…, model=…))

Audio Flamingo 1's way to AF-Dialogue-AudioSetSL and -MusicCaps (arXiv 2402.01831): strong labels (a row's ``spans``) or
captions go to a language model, which writes 1 to 4 rounds; those whose words give away that somebody only read about
the sound are left out. What is left is then filtered by how well it fits the sound, at a similarity of 0.3
(``tools/filter_rows.py``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_af.data.rows import Question, Row
from megatron_af.prepare.generation import Found, GenerationConfig, Report, Task, generate, plain_words

INSTRUCTIONS = """\
You write conversations between a user and an assistant who hear the same recording. For each recording in the list \
you are told what is heard in it: sounds with the second they begin and end, or a description.
Write {least} to {most} rounds. The user asks about what is heard, as somebody who listens would; later questions may \
refer to earlier answers. The assistant answers in one or two sentences, and says nothing that cannot be known from \
what is told. Both speak of what they hear: never mention labels, descriptions, captions, data or exact seconds.
Answer with JSON only, one entry for every id:
{{"dialogues": [{{"id": 0, "turns": [{{"user": "…", "assistant": "…"}}]}}]}}"""
GIVEN_AWAY = (
    "as an ai", "language model", "i am unable", "i cannot", "i can t", "i m sorry", "i apologize", "not able to hear",
    "label", "labels", "labeled", "caption", "captions", "description", "metadata", "annotation", "annotations",
    "timestamp", "timestamps", "dataset", "provided", "given information", "not specified", "not mentioned",
    "not stated", "no information", "based on the text",
)  # fmt: skip
"""Phrases of answers that were read and not heard: the kinds that LTU and LLark filter, and ours."""
LONGEST_WORDS = 80
"""Of a question or an answer."""


@dataclass(frozen=True, kw_only=True)
class DialogueConfig(GenerationConfig):
    """Rows about one clip with ``spans`` or captions."""

    least_turns: int = 1
    most_turns: int = 4


def write_dialogues(config: DialogueConfig, watch: Callable[[int, int], None] = lambda done, rows: None) -> Report:
    """A conversation about every row of ``config.source``; see :func:`megatron_af.prepare.generation.generate`."""
    return generate(Dialogues(config), config, watch)


class Dialogues(Task):
    reply_key = "dialogues"

    def __init__(self, config: DialogueConfig) -> None:
        self._config = config
        self.instructions = INSTRUCTIONS.format(least=config.least_turns, most=config.most_turns)
        self.settings = (config.least_turns, config.most_turns)

    def asked(self, row: Row) -> dict[str, Any] | str:
        if len(row.clips) != 1:
            return f"the row has {len(row.clips)} clips, a conversation is about one"
        seconds, heard = row.clips[0].duration, sorted(row.spans, key=lambda span: (span.start, span.end))
        if heard:
            sounds = [{"sound": " ".join(s.captions), "begins": s.start, "ends": s.end} for s in heard]
            return {"seconds": seconds, "sounds": sounds}
        if row.captions:
            return {"seconds": seconds, "description": " ".join(row.captions)}
        return "nothing is known of the recording: no spans, no captions"

    def check(self, entry: dict[str, Any], row: Row) -> Found | str:
        turns = entry.get("turns")
        least, most = self._config.least_turns, self._config.most_turns
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            return "turns must be a list of user and assistant"
        if not least <= len(turns) <= most:
            return f"{len(turns)} turns instead of {least} to {most}"
        texts = [turn.get(who) for turn in turns for who in ("user", "assistant")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            return "a question or an answer is empty or missing"
        if any(len(text.split()) > LONGEST_WORDS for text in texts):
            return f"a question or an answer has more than {LONGEST_WORDS} words"
        said = [f" {plain_words(text)} " for text in texts]
        if given_away := next((phrase for phrase in GIVEN_AWAY for text in said if f" {phrase} " in text), None):
            return f"it says {given_away!r}: written about, not heard"
        if len(set(said[::2])) < len(turns):
            return "a question is asked twice"
        return {"turns": [[turn["user"].strip(), turn["assistant"].strip()] for turn in turns]}

    def made(self, row: Row, found: Found) -> Row:
        """The recording with the conversation alone; what it was written from is no more said of it."""
        turns = tuple(Question(prompt=user, output=assistant) for user, assistant in found["turns"])
        return Row(id=row.id, clips=row.clips, questions=turns, task="dialog", template="dialogue", meta=row.meta)
