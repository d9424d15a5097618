"""An answer piece by piece, while another thread writes it.

    for piece in pieces_of(lambda tell: model.complete([request], tell=[tell])): print(piece, end="")
"""

import queue
import threading
from collections.abc import Callable, Iterator

from megatron_af.inference.writing import Answer, Piece, Tell


def pieces_of(write: Callable[[Tell], object]) -> Iterator[str]:
    """What an answer is told, as it is told; whoever stops to listen ends it.

    Args:
        write: writes the answer and tells it; what it raises is raised here.
    """
    pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
    wanted = threading.Event()
    wanted.set()

    def tell(event: Piece | Answer) -> bool:
        if isinstance(event, Piece):
            pieces.put(event.text)
        return wanted.is_set()

    def run() -> None:
        try:
            write(tell)
            pieces.put(None)
        except Exception as error:
            pieces.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece
    finally:
        wanted.clear()
