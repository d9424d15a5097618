"""Questions that teach skills (AudioSkills, LongAudio), made of what is known of recordings.

    report = make_skills(SkillsConfig(source="strong.jsonl", output="skills.jsonl"))              # of labels alone
    report = make_skills(SkillsConfig(…, endpoint=…, model=…, written=["contextual_sound"]))      # by a model, too

A recording that lies there under several names is asked about once, and the questions about a tenth of them can be held
out, as LongAudioBench is of LongAudio (``sources.py``). Every question of the output has its right option at a place
that says nothing; the report says how much the text alone gives away, skill by skill.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_af.config import ConfigError
from megatron_af.config.errors import suggestion
from megatron_af.data.rows import BadLine, Manifest, Row, to_json
from megatron_af.data.storage import DataRoot
from megatron_af.files import write
from megatron_af.prepare.balance import balanced, fair
from megatron_af.prepare.generation import GenerationConfig, generate, plain_reason
from megatron_af.prepare.long_questions import long_questions
from megatron_af.prepare.parts import contents_of
from megatron_af.prepare.skill_questions import questions
from megatron_af.prepare.sources import held_out, without_copies
from megatron_af.prepare.strong_labels import heard
from megatron_af.prepare.text_leak import Leak, text_leak
from megatron_af.prepare.written_skills import LONG, OPEN, SHORT, SelfCheck, WrittenSkill


@dataclass(frozen=True, kw_only=True)
class SkillsConfig(GenerationConfig):
    """Rows about one clip with ``spans`` (strong labels), captions or ``meta.transcript``."""

    endpoint: str = ""
    """Of a language model, for ``written``."""
    model: str = ""
    root: str = "."
    """Folder of the recordings, such as ``data.root``: they are known by what they hold, where they lie there."""
    held_out: str = ""
    """JSONL of the questions about a tenth of the recordings, for the benchmark ``longaudio``; empty: of none."""
    truth: bool = True
    """Make the questions that strong labels answer by themselves."""
    long_seconds: float = 30.0
    """Recordings of so many seconds and more are asked LongAudio's questions among these, too."""
    written: tuple[str, ...] = ()
    """Kinds of questions that the language model writes, one of each about every row: AudioSkills'
    ``attribute_identification``, ``contextual_sound``, ``contextual_speech``, ``information_extraction`` and
    ``general_reasoning``; LongAudio's ``captioning``, ``plot``, ``needle``, ``subscene``, ``temporal``, ``general``."""
    self_check: bool = True
    """Keep a written question only where the language model, told what is known, chooses its answer."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SkillsReport:
    rows: int
    skills: dict[str, int]
    """Skill -> questions."""
    refused: dict[str, int]
    """Reason -> rows, of each way of making questions."""
    leak: dict[str, Leak] = field(default_factory=dict)
    asked: int = 0
    """Rows times ways of making questions."""
    thinned: int = 0
    """Questions left out because their answers were right too often."""
    copies: int = 0
    """Rows left out because their recording is there under another name."""
    held_out: tuple[int, int] = (0, 0)
    """Questions that are held out, and recordings."""

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{sum(self.skills.values()):,} questions about {self.rows:,} recordings"]
        for skill, count in self.skills.items():
            leak = f"; {self.leak[skill]}" if skill in self.leak else ""
            lines.append(f"  {count:,} {skill}{leak}")
        few = "too few to say what their text gives away"
        lines.append(f"  all: {self.leak.get('all', few)}")
        questions, recordings = self.held_out
        lines += [f"  {questions:,} more about {recordings:,} recordings are held out"] if recordings else []
        lines += [f"  {self.copies:,} rows left out: their recordings are there under another name"] * bool(self.copies)
        lines += [f"  {self.thinned:,} left out: their answers were right too often"] if self.thinned else []
        return lines + [f"  {count:,} refused: {reason}" for reason, count in self.refused.items()]

    @property
    def exit_code(self) -> int:
        """1 where more than a tenth was refused."""
        return 0 if sum(self.refused.values()) <= self.asked / 10 else 1


def make_skills(
    config: SkillsConfig, watch: Callable[[str, int, int], None] = lambda what, done, rows: None
) -> SkillsReport:
    """
    Args:
        watch: told what is being done, and how many of how many rows are.

    Raises:
        ConfigError: unknown kinds, or nobody to write them.
        EndpointError, RowError, FileNotFoundError: as :func:`megatron_af.prepare.generation.generate`.
    """
    kinds = [*SHORT, *LONG]
    problems = [f"written: {kind}{suggestion(kind, kinds)}" for kind in config.written if kind not in kinds]
    if config.written and not (config.endpoint and config.model):
        problems.append("written needs endpoint and model: name a server of a language model")
    if not (config.truth or config.written):
        problems.append("nothing to make: set truth or name kinds in written")
    if config.held_out and config.held_out == config.output:
        problems.append("held_out is output: give what is held out a file of its own")
    if problems:
        raise ConfigError("skills cannot be made", problems)
    every = list(Manifest(Path(config.source)).each())
    rows = [row for row in every if isinstance(row, Row)]
    unread = [line for line in every if isinstance(line, BadLine)]
    ways = config.truth + len(config.written)
    refused = Counter(plain_reason(line.why) for line in unread for _ in range(ways))
    contents = contents_of(config.root, Path(config.output).parent, rows)
    kept, copies = without_copies(DataRoot(config.root), rows, contents)
    if copies:
        lines = [{"id": rows[place].id, "copy_of": rows[first].id} for place, first in copies.items()]
        write(Path(f"{config.output}.copies"), "".join(json.dumps(line) + "\n" for line in lines))
        rows, contents = [rows[place] for place in kept], [contents[place] for place in kept]
    if copies or unread:
        config = replace(config, source=f"{config.output}.sources")
        write(Path(config.source), "".join(to_json(row) + "\n" for row in rows))
    made = of_labels(rows, config.seed, refused, config.long_seconds) if config.truth else []
    for kind in config.written:
        made += _written(config, kind, refused, watch)
    made, thinned = fair(made, config.seed)
    apart = {row.clips: held for row, held in zip(rows, held_out(rows, contents), strict=True) if config.held_out}
    held = balanced([row for row in made if apart.get(row.clips)], config.seed)
    made = balanced([row for row in made if not apart.get(row.clips)], config.seed)
    write(Path(config.output), "".join(to_json(row) + "\n" for row in made))
    if config.held_out:
        write(Path(config.held_out), "".join(to_json(row) + "\n" for row in held))
    skills = Counter(question.skill for row in made for question in row.questions)
    return SkillsReport(
        rows=_recordings(made),
        skills=dict(sorted(skills.items())),
        refused=dict(refused.most_common()),
        leak=text_leak(made),
        asked=(len(rows) + len(unread)) * ways,
        thinned=thinned,
        copies=len(copies),
        held_out=(sum(len(row.questions) for row in held), _recordings(held)),
    )


def _recordings(rows: Sequence[Row]) -> int:
    return len({row.clips[0].recording for row in rows})


def of_labels(
    rows: Sequence[Row], seed: int, refused: Counter[str], long_seconds: float = SkillsConfig.long_seconds
) -> list[Row]:
    """Questions that rows' strong labels answer, right options first; why others were refused goes to ``refused``.

    Args:
        long_seconds: from this length on, a recording is asked LongAudio's questions as well.
    """
    known = [(row, heard(row)) for row in rows]
    labels = sorted({s.label for _, sounds in known if not isinstance(sounds, str) for s in sounds})
    made = []
    for row, sounds in known:
        if isinstance(sounds, str):
            refused[plain_reason(sounds)] += 1
            continue
        rng = random.Random(f"{seed} {row.id}")
        seconds = row.clips[0].duration
        asked = list(questions(sounds, seconds, labels, rng))
        if seconds >= long_seconds:
            asked += long_questions(sounds, seconds, labels, rng)
        if asked:
            made.append(Row(id=row.id, clips=row.clips, questions=tuple(asked), task="audio question answering"))
    return made


def _written(
    config: SkillsConfig, kind: str, refused: Counter[str], watch: Callable[[str, int, int], None]
) -> list[Row]:
    at = f"{config.output}.{kind}"
    plain = {name: getattr(config, name) for name in GenerationConfig.__dataclass_fields__}
    job = GenerationConfig(**plain | {"output": at})
    report = generate(WrittenSkill(kind), job, lambda done, rows: watch(kind, done, rows))
    refused.update(map(plain_reason, report.refused.values()))
    if config.self_check and kind not in OPEN:
        checked = replace(job, source=at, output=f"{at}.checked", temperature=0.0)
        report = generate(SelfCheck(), checked, lambda done, rows: watch(f"check {kind}", done, rows))
        refused.update(map(plain_reason, report.refused.values()))
        at = checked.output
    rows = Manifest(Path(at))
    return [replace(row, id=f"{row.id}-{kind}", spans=(), captions=(), task="audio question answering") for row in rows]
