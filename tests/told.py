"""What a long job tells, as a test reads it."""

import io

from rich.console import Console

from megatron_af.progress import Progress


class Told(Progress):
    """Writes plain lines into memory."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        super().__init__(Console(file=self._file))

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()
