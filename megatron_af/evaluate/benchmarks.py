"""The questions of a benchmark, read from its published layout and checked; what cannot be asked is left out and named.

    found = read_questions(load_benchmark("mmau"), DataRoot("data"))
    found.questions[0].row, found.left_out, found.notes
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from dali_pipes.waves import AudioError
from megatron_af.config.errors import listed
from megatron_af.data.rows import Question, Row
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.exchange import plain_answer
from megatron_af.evaluate.lettered_options import LETTERS, place_of, without_letters
from megatron_af.foreign import ForeignError
from megatron_af.prepare.importers.layout import Noted, PassedOver
from megatron_af.prepare.importers.made_rows import options_prompt
from megatron_af.prepare.importers.run import Line, lines_of, rows_of
from megatron_af.runs.benchmarks import Benchmark


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of a benchmark."""

    id: str
    row: Row
    """Asks it last, as it was published; its options are in the order in which they are shown."""
    references: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def question(self) -> Question:
        return self.row.questions[-1]

    @property
    def group(self) -> str:
        clip = self.row.own_clips[-1]
        return clip.digest or f"{clip.recording}#{clip.start:g}"

    def worded(self, wording: str) -> Row:
        """The row that asks it in these words."""
        question = self.question
        options = " ".join(f"({letter}) {o}" for letter, o in zip(LETTERS, question.options, strict=False))
        labels = options_prompt("", list(question.options)).strip() if question.options else ""
        filled = {"question": question.prompt, "options": options, "labels": labels}
        text = re.sub(r"{(\w+)}", lambda place: filled[place[1]], wording)
        return replace(self.row, questions=(*self.row.questions[:-1], replace(question, prompt=text.strip())))


@dataclass(frozen=True, kw_only=True)
class Questions:
    questions: list[Asked] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """What they were made of: for measurements of captions and classes."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """``{"reason": …, "problem": …}`` of each row or question that cannot be used."""
    notes: dict[str, int] = field(default_factory=dict)
    """What is odd with questions that are asked all the same -> how many."""

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(entry["reason"] for entry in self.left_out).most_common())


def read_questions(benchmark: Benchmark, root: DataRoot) -> Questions:
    """
    Raises:
        ForeignError, StorageError: the layout is not what the benchmark's file says, or is not there, or nothing in it
            can be asked.
    """
    rows, left_out, notes = [], [], Counter[str]()
    for line in lines_of(rows_of(root, benchmark.source)):
        if isinstance(line, Line):
            rows.append(line.row)
        elif isinstance(line, Noted):
            notes[line.kind] += 1
        elif not isinstance(line, PassedOver):
            reason = line.reason if isinstance(line, AudioError) else "bad row"
            left_out.append({"reason": reason, "problem": str(line)})
    found = questions_of_rows(benchmark, rows, left_out)
    if not found.questions:
        why = f"; the first: {found.left_out[0]['problem']}" if found.left_out else ""
        raise ForeignError(
            f"{root}/{benchmark.source.path}: none of its {len(rows) + len(left_out):,} rows can be asked{why}"
        )
    return replace(found, notes=dict(notes + Counter(found.notes)))


def questions_of_rows(benchmark: Benchmark, rows: Sequence[Row], left_out: Iterable[dict[str, str]] = ()) -> Questions:
    """Every question of the rows once: what is asked in the same words about the same recording is one question, whose
    references are all answers to it."""
    bad, notes, asked = list(left_out), Counter[str](), dict[tuple[str, ...], Asked]()
    for row in rows:
        for single in row.each_question():
            question = single.questions[-1]
            about = (f"{clip.recording}#{clip.start:g}" for clip in single.clips)
            place: tuple[str, ...] = (*about, *(q.prompt for q in single.questions))
            number = f"{row.id}#{len(single.questions)}" if row.template == "dialogue" else row.id
            options = without_letters(question.options or benchmark.options)
            several = "labels" in row.meta
            lettered = any("{options}" in wording for wording in benchmark.wordings)
            if problem := _unusable(question.output, options, several=several, lettered=lettered):
                bad.append({"reason": problem.partition(":")[0], "problem": f"{number}: {problem}"})
                continue
            place_of_answer = None if several else place_of(question.output, options)
            reference = question.output if place_of_answer is None else options[place_of_answer]
            if place in asked and not question.options:
                before = asked[place]
                asked[place] = replace(before, references=(*before.references, reference))
                continue
            if any(_words(a) < _words(b) for a in options for b in options):
                notes["options contain each other"] += 1
            if benchmark.shuffle_options:
                options = tuple(random.Random(number).sample(options, len(options)))
            place = (*place, str(len(asked))) if place in asked else place
            asked[place] = Asked(
                id=number,
                row=replace(single, questions=(*single.questions[:-1], replace(question, options=options))),
                references=(reference,),
                labels=tuple(row.meta.get("labels", ())),
            )
    return Questions(questions=_by_own_names(asked.values()), rows=list(rows), left_out=bad, notes=dict(notes))


def _unusable(output: str, options: Sequence[str], *, several: bool, lettered: bool) -> str:
    """Why a question cannot be measured; empty: it can."""
    plain = [plain_answer(option) for option in options]
    if not options or several:
        return ""
    if lettered and len(options) > len(LETTERS):
        return f"more options than letters: {len(options)}, and a wording with {{options}} has a letter for each"
    if "" in plain:
        return f"an option is empty: {listed(options)}"
    if twice := [option for option in dict.fromkeys(plain) if plain.count(option) > 1]:
        return f"two options are the same: {listed(twice)}"
    if place_of(output, options) is None:
        return f"its answer is none of its options: {output!r} of {listed(options)}"
    return ""


def _words(text: str) -> set[str]:
    return set(plain_answer(text).split())


def _by_own_names(asked: Iterable[Asked]) -> list[Asked]:
    """Questions whose ids differ: a layout may give one id to several."""
    seen, found = Counter[str](), []
    for one in asked:
        seen[one.id] += 1
        found.append(one if seen[one.id] == 1 else replace(one, id=f"{one.id}~{seen[one.id]}"))
    return found
