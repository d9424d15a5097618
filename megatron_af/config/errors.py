"""What a configuration that cannot run raises."""

from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration that cannot run; the message names every problem at once.

    ``problems`` holds one line each: key, where it stands, what was expected, what to change.
    """

    def __init__(self, subject: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        count = {0: "", 1: ": 1 problem"}.get(len(problems), f": {len(problems)} problems")
        super().__init__("\n".join([f"{subject}{count}", *(f"  - {problem}" for problem in problems)]))
