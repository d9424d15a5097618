"""Requests with the examples that sound most like their audio, out of the indexes of a model's run or release.

    found = FoundExamples(config)
    requests = found.before(requests, 4, "train")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_af.config import Config
from megatron_af.inference.requests import BadRequest, Opens, is_absent, own_files
from megatron_af.runs.bundle import INDEXES
from megatron_af.runs.digests import digest_file

if TYPE_CHECKING:
    from megatron_af.retrieval.retriever import Retriever


class FoundExamples:
    """
    Args:
        opens: which files requests may name.
    """

    def __init__(self, config: Config, opens: Opens = own_files) -> None:
        self._config, self._opens = config, opens
        self._retrievers: dict[str, Retriever] = {}

    def before(self, requests: Sequence[Mapping[str, Any]], count: int, dataset: str) -> list[Mapping[str, Any]]:
        """Each request with so many examples.

        Args:
            dataset: whose index they come from; empty: of the only one there is.

        Raises:
            BadRequest: there is no such index, or a request has examples, history or no audio.
            StaleIndex: the data set is not any more what was indexed.
        """
        retriever = self._retriever(dataset)
        return [
            self._with_examples(retriever, request, count, f"request {index}") for index, request in enumerate(requests)
        ]

    def close(self) -> None:
        """Ends their threads."""
        for retriever in self._retrievers.values():
            retriever.close()
        self._retrievers.clear()

    def digest(self, dataset: str) -> str:
        """Of what examples come from: an index that was built again may find others.

        Raises:
            BadRequest: there is no such index.
        """
        return digest_file(self._index(dataset))

    def _retriever(self, dataset: str) -> "Retriever":
        dataset = self._index(dataset).parent.name
        if dataset not in self._retrievers:
            from megatron_af.retrieval.retriever import Retriever

            self._retrievers[dataset] = Retriever(self._config, dataset, opens=self._opens)
        return self._retrievers[dataset]

    def _index(self, dataset: str) -> Path:
        """What says what it is: file of a data set's index, or of the only one."""
        folder = Path(self._config.output) / self._config.name / INDEXES
        indexed = sorted(file.parent.name for file in folder.glob("*/index.json"))
        dataset = dataset or (indexed[0] if len(indexed) == 1 else "")
        if dataset not in indexed:
            known = ", ".join(indexed) or "none: build one (tools/build_retrieval.py), and release again"
            raise BadRequest(f"few_shot_from: expected an index of this model, got {dataset!r}; it has {known}")
        return folder / dataset / "index.json"

    @staticmethod
    def _with_examples(
        retriever: "Retriever", request: Mapping[str, Any], count: int, where: str
    ) -> Mapping[str, Any]:
        given = [key for key in ("history", "examples") if not is_absent(request.get(key))]
        if given:
            raise BadRequest(f"{where}: expected few_shot or {given[0]}, got both")
        if is_absent(request.get("audio")):
            raise BadRequest(f"{where}: audio: expected a recording to find examples for, got none")
        return {**request, **retriever.request(request["audio"], request.get("prompt") or "", count)}
