"""How far each stage and each evaluation of a curriculum is, read off the lines that their processes print.

    with Progress() as progress:
        run_curriculum(config, say=StageProgress(config, progress))
"""

import re

from megatron_af.config import Config
from megatron_af.progress import Progress

LINE = re.compile(r"\[([\w.-]+)[ \d]*\] (.*)")
STEP = re.compile(r"^step (\d+)/(\d+) .*?\| loss (\S+)")
ASKED = re.compile(r"^asked (\d+)/(\d+) ")


class StageProgress:
    """Takes the lines of a curriculum in place of ``show``."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self._config, self._progress = config, progress

    def __call__(self, said: str) -> None:
        match = LINE.match(said)
        stage, line = (match[1].removeprefix("evaluate-"), match[2]) if match else ("", "")
        if stage not in self._config.curriculum:
            return
        if asked := ASKED.match(line):
            self._progress.update(f"questions {stage}", int(asked[1]), int(asked[2]))
        elif match := STEP.match(line):
            self._progress.update(f"stage {stage}", int(match[1]), int(match[2]), f"loss {match[3]}")
        elif line.startswith("skip: "):
            steps = self._config.curriculum[stage].steps
            self._progress.update(f"stage {stage}", steps, steps)
        elif line.startswith(("train: ", "resume: ")):
            self._progress.update(f"stage {stage}", 0, self._config.curriculum[stage].steps)
