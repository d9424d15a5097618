"""Examples for prompts: the training rows that sound most like a recording, found while a model is asked.

    retriever = Retriever(config, "clotho")                             # a process group exists
    for neighbour in retriever.nearest([Path("dog.wav")], 4)[0]:
        print(neighbour.clip.path, neighbour.prompt, neighbour.output, neighbour.similarity)
    model.answers([retriever.request(Path("dog.wav"), "describe the sound", 4)])      # serve/loaded_model.py

Audio is a file, base64, bytes, a row below ``data.root``, or its embedding. N queries, J joint dim.
"""

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from dali_pipes.waves import read_wave
from megatron_af.config import Config
from megatron_af.data.rows import Clip, Row
from megatron_af.data.shards import open_rows, source_of
from megatron_af.data.storage import DataRoot
from megatron_af.inference.embedder import AudioEmbedder
from megatron_af.inference.requests import Opens, RequestRows, own_files
from megatron_af.retrieval.encoder import embedder_of
from megatron_af.retrieval.index import NeighbourIndex
from megatron_af.retrieval.interleave import Neighbour, behind, draw_rows

type Audio = Path | str | bytes


class Retriever:
    """Looks things up in the index of one data set.

    Args:
        opens: which files may be named as audio.

    Raises:
        StaleIndex: it was not built of this encoder and this data.
    """

    def __init__(self, config: Config, dataset: str, *, opens: Opens = own_files) -> None:
        self._opens, self._dataset = opens, dataset
        self._config, self._root = config, DataRoot(config.data.root)
        self._index = NeighbourIndex.open(config, dataset)
        self._rows = open_rows(self._root, config.data.datasets[dataset].manifest)
        self._embedder: AudioEmbedder | None = None

    def nearest(
        self, audio: Sequence[Audio] | Sequence[Row] | NDArray[np.float32], count: int, *, skill: str = ""
    ) -> list[list[Neighbour]]:
        """Up to ``count`` neighbours of each query, the most similar first, no two of one recording.

        Rows know their recording, which is then no neighbour. The same query gets the same answer.

        Args:
            audio: recordings, rows with a clip below ``data.root``, or vector_NJ of unit length.
            skill: what the examples should answer, where their rows have several questions.
        """
        found = self._pieces(audio, count)
        return [draw_rows(self._index, self._rows, pieces, skill, random.Random(0)) for pieces in found]

    def _pieces(
        self, audio: Sequence[Audio] | Sequence[Row] | NDArray[np.float32], count: int
    ) -> list[list[tuple[int, float]]]:
        own: list[set[int]] = [set() for _ in audio]
        if isinstance(audio, np.ndarray):
            vector_NJ = audio
        elif isinstance(audio[0], Row):
            rows = [row for row in audio if isinstance(row, Row)]
            own = [self._index.recordings_of([self._digest(row.clips[0])]) for row in rows]
            vector_NJ = self.embed(rows)
        else:
            with RequestRows(self._opens) as requests:
                rows = [requests.recording(a, f"audio {n}") for n, a in enumerate(audio)]
                vector_NJ = self.embed(rows, requests.root)
        return self._index.nearest(vector_NJ, count, own=own)

    def embed(self, rows: Sequence[Row], root: Path | None = None) -> NDArray[np.float32]:
        """vector_NJ of the rows' clips below ``root`` (``data.root``); a collective."""
        if self._embedder is None:
            self._embedder = embedder_of(self._config)
        vector_NJ: NDArray[np.float32] = self._embedder.audio(rows, root=root).numpy()
        return vector_NJ

    def examples(self, rows: Sequence[Row], count: int) -> list[list[Neighbour]]:
        """``count`` neighbours of each row, the most similar first; they answer the skill of its last question.

        Raises:
            ValueError: a row that cannot stand behind examples, or one with fewer neighbours.
        """
        for row in rows:
            if row.template != "single" or len(row.clips) != 1 or not row.questions:
                raise ValueError(
                    f"row {row.id}: expected a question of its own about one clip to stand behind examples, got "
                    f"template {row.template}, {len(row.clips)} clips, {len(row.questions)} questions"
                )
        places: dict[Clip, int] = {}  # questions about one clip have the same neighbours
        own = [places.setdefault(row.clips[0], len(places)) for row in rows]
        about = dict(zip(own, rows, strict=True))
        found = self._pieces([about[place] for place in range(len(about))], count) if rows else []
        fewest = min(map(len, found), default=count)
        if fewest < count:
            raise ValueError(
                f"{count} examples were asked for: {self._dataset} has {fewest} recordings that may stand before "
                f"every row; ask for at most {fewest}"
            )
        return [
            draw_rows(self._index, self._rows, found[place], row.questions[-1].skill, random.Random(0))
            for row, place in zip(rows, own, strict=True)
        ]

    def few_shot(self, rows: Sequence[Row], count: int) -> list[Row]:
        """Each row's last question behind ``count`` examples: what an evaluation asks instead of the row.

        Raises:
            ValueError: see :meth:`examples`.
        """
        return [behind(row, found) for row, found in zip(rows, self.examples(rows, count), strict=True)]

    def request(self, audio: Audio, prompt: str, count: int) -> Mapping[str, Any]:
        """A request (``inference/requests.py``) with ``count`` examples before the question."""
        examples = [
            {"audio": self._wav(n.clip), "prompt": n.prompt, "answer": n.output}
            for n in self.nearest([audio], count)[0][::-1]
        ]
        return {"audio": audio, "prompt": prompt, "examples": examples}

    def close(self) -> None:
        if self._embedder is not None:
            self._embedder.close()

    def _digest(self, clip: Clip) -> str:
        return clip.digest or self._root.digest(clip.path, clip.offset, clip.length or None)

    def _wav(self, clip: Clip) -> bytes:
        source = source_of(self._root, clip)
        rate = self._config.model.front_end.sample_rate
        wave_T = read_wave(source, start=clip.start, duration=clip.duration, sample_rate=rate)
        file = io.BytesIO()
        soundfile.write(file, wave_T, rate, format="WAV", subtype="FLOAT")
        return file.getvalue()
