"""Builds indexes and writes interleaved rows; a collective, since all ranks share the embedding.

    with Builder(config, progress) as builder:      # a process group exists
        builder.index("clotho")
        builder.interleave("clotho_knn")

Rank 0 alone reads catalogues and writes files. Only what the encoder has not embedded yet is embedded, and an index
that fits its encoder and data stays as it is.
"""

import json
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_af.config import Config, ConfigError
from megatron_af.data.rows import Row, to_json
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.inference.embedder import AudioEmbedder
from megatron_af.parallel.collectives import from_first
from megatron_af.prepare.mining import deciles
from megatron_af.progress import Progress, silent
from megatron_af.retrieval.catalogue import read_catalogue
from megatron_af.retrieval.encoder import embedder_of, encoder_digest, joint_dim
from megatron_af.retrieval.index import NeighbourIndex, index_folder, index_inputs, why_stale
from megatron_af.retrieval.interleave import interleaved_rows
from megatron_af.retrieval.vectors import VectorStore
from megatron_af.runs.lock import StageLock

CHUNK = 2048
"""Clips embedded between two reports; what is embedded by then is kept."""


class Builder:
    """
    Args:
        progress: told on rank 0.

    Raises:
        ConfigError: nothing is to be indexed, or a data set cannot be.
        FileNotFoundError: a manifest, the checkpoint of ``retrieval.stage`` or ``retrieval.encoder`` is not there.
        StageBusy: on entering, while another process builds indexes of this run.
    """

    def __init__(self, config: Config, progress: Progress) -> None:
        if not config.retrieval.indexes:
            problem = "neither retrieval.stage nor retrieval.encoder is set: name a contrastive stage, or a folder"
            raise ConfigError("nothing to embed with", [problem])
        self._config, self._root = config, DataRoot(config.data.root)
        self._first = dist.get_rank() == 0
        self._progress = progress if self._first else silent()
        self._embedder: AudioEmbedder | None = None
        self._folder, self._held = Path(config.output) / config.name / "retrieval", ExitStack()

    def __enter__(self) -> Self:
        from_first(self._hold)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()
        if self._embedder is not None:
            self._embedder.close()

    def index(self, dataset: str) -> NeighbourIndex | None:
        """Bring the index of a data set up to date; on rank 0 it is returned."""
        if from_first(lambda: not why_stale(self._config, dataset)):
            if not self._first:
                return None
            index = NeighbourIndex.open(self._config, dataset)
            self._progress.say(f"{dataset}: the index is up to date, {len(index):,} clips")
            return index
        self._embed(dataset, from_first(lambda: self._missing(dataset)))
        if not self._first:
            return None
        catalogue, store = self._catalogue, self._store
        folder, inputs = index_folder(self._config, dataset), index_inputs(self._config, dataset)
        index = NeighbourIndex.make(catalogue, store.of(catalogue.key_P), folder, inputs, self._config.retrieval)
        store.remove_others()
        left_out = "".join(f", {reason}: {count:,}" for reason, count in catalogue.left_out.items())
        self._progress.say(f"{dataset}: {len(index):,} clips of {len(catalogue.row_N):,} rows indexed{left_out}")
        return index

    def interleave(self, name: str) -> None:
        """Write the rows of a data set that has ``neighbours``, and beside them a report."""
        dataset = self._config.data.datasets[name]
        if dataset.neighbours is None:
            raise ConfigError("nothing to interleave", [f"data.datasets.{name}.neighbours is not set"])
        index = self.index(dataset.neighbours.of)
        if index is None:
            return
        rows = open_rows(self._root, self._config.data.datasets[dataset.neighbours.of].manifest)
        examples, total = dataset.neighbours.examples, len(index.catalogue.row_N)
        similarities = array("f")
        written = 0
        with self._root.writing(dataset.manifest) as file:  # which appears only where nothing is raised
            seed, names = f"{self._config.seed}/{name}", dataset.neighbours.names
            for row in interleaved_rows(index, rows, examples=examples, seed=seed, names=names):
                file.write(to_json(row).encode() + b"\n")
                similarities.extend(row.meta["similarity"])
                written += 1
                self._progress.update(f"interleave {name}", written, total)
            if not written:
                recordings = len(set(index.catalogue.recording_P.tolist()))
                problem = f"data.datasets.{name}.neighbours.examples = {examples}: {dataset.neighbours.of} has "
                raise ConfigError("no interleaved rows", [f"{problem}{recordings} recordings; lower it"])
        self._root.sweep_beside(dataset.manifest)
        report = {"rows": written, "too few neighbours": total - written, "similarity_deciles": deciles(similarities)}
        self._root.write(f"{dataset.manifest}.report", (json.dumps(report, indent=1) + "\n").encode())
        self._progress.say(f"{name}: {written:,} rows with {examples} examples each in {self._root}/{dataset.manifest}")

    def _hold(self) -> None:
        self._held.enter_context(StageLock(self._folder))

    def _missing(self, dataset: str) -> list[tuple[int, str]]:
        """Row number and key of each piece that was never embedded."""
        self._store = VectorStore(self._folder, encoder_digest(self._config), joint_dim(self._config))
        self._catalogue = catalogue = read_catalogue(self._config, dataset)
        _, first_N = np.unique(catalogue.piece_N, return_index=True)
        pairs = zip(catalogue.row_N[first_N].tolist(), catalogue.key_P, strict=True)
        return [(number, key) for number, key in pairs if key not in self._store]

    def _embed(self, dataset: str, missing: Sequence[tuple[int, str]]) -> None:
        rows = open_rows(self._root, self._config.data.datasets[dataset].manifest)
        for begin in range(0, len(missing), CHUNK):
            chunk = missing[begin : begin + CHUNK]
            audio_NJ = self._embed_rows([rows[number] for number, _ in chunk])
            if self._first:
                self._store.add([key for _, key in chunk], audio_NJ)
            self._progress.update(f"embed {dataset}", begin + len(chunk), len(missing))

    def _embed_rows(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        if self._embedder is None:
            self._embedder = embedder_of(self._config)
        vector_NJ: NDArray[np.float32] = self._embedder.audio(rows).numpy()
        return vector_NJ
