"""A released model in one process.

    answerer = Answerer(Path("runs/demo/releases/3f2a…"))
    answerer.answer([{"audio": "dog.wav", "prompt": "what is it?"}])      # ["a dog"]
    answerer.answer([…], few_shot=4)              # behind the 4 training rows that sound most like it
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_af.config.loading import load_config
from megatron_af.data.templates import TooLong
from megatron_af.inference.requests import BadRequest, RequestRows, is_absent
from megatron_af.parallel.device import current_device, make_megatron_portable
from megatron_af.runs.bundle import CONFIG, INDEXES, TOKENIZER

if TYPE_CHECKING:
    from megatron_af.retrieval.retriever import Retriever


class Answerer:
    """Loads once, answers batches; calls from several threads wait for each other."""

    def __init__(self, release: Path) -> None:
        import torch.distributed as dist

        make_megatron_portable()
        # Imported only now: megatron-core must have been made portable before its modules run.
        from megatron_af.inference.listener import Listener

        if not dist.is_initialized():
            dist.init_process_group(
                current_device().backend, init_method="tcp://127.0.0.1:0", rank=0, world_size=1
            )
        config = load_config(release / CONFIG)
        tokenizer = release / TOKENIZER
        data = replace(config.data, tokenizer=str(tokenizer)) if tokenizer.exists() else config.data
        # The release is laid out like a run of its own.
        config = replace(config, output=str(release.parent), name=release.name, data=data)
        self._config = config
        self._indexed = sorted(folder.name for folder in (release / INDEXES).glob("*") if folder.is_dir())
        self._retrievers: dict[str, Retriever] = {}
        self._listener = Listener(config)
        self._lock = threading.Lock()

    def answer(
        self,
        requests: Sequence[Mapping[str, Any]],
        max_new_tokens: int = 64,
        *,
        few_shot: int = 0,
        few_shot_from: str = "",
    ) -> list[str]:
        """One answer per request.

        Args:
            few_shot: show this many examples before each question: the training rows that sound most like its audio.
            few_shot_from: data set whose index they come from; it may be left out where the release has one index.

        What comes before a question and does not fit is left out, the oldest turn or example first.

        Raises:
            BadRequest: before any answer is computed; also for a question that does not fit alone.
            StaleIndex: the data set is not any more what was indexed.
        """
        with self._lock, RequestRows() as files:
            if few_shot:
                retriever = self._retriever(few_shot_from)
                requests = [
                    self._with_examples(retriever, request, few_shot, f"request {index}")
                    for index, request in enumerate(requests)
                ]
            rows = [files.row(request, f"request {index}") for index, request in enumerate(requests)]
            for row in rows:
                try:
                    self._listener.prompt(row)
                except TooLong as error:
                    raise BadRequest(
                        f"{row.id}: expected a question that takes at most {error.max_tokens} tokens, got one of "
                        f"{error.tokens}; shorten it"
                    ) from None
            answers = self._listener(rows, root=files.root, max_new_tokens=max_new_tokens)
            return [answer or "" for answer in answers]

    def _retriever(self, dataset: str) -> "Retriever":
        dataset = dataset or (self._indexed[0] if len(self._indexed) == 1 else "")
        if dataset not in self._indexed:
            known = ", ".join(self._indexed) or "none: build one (tools/build_retrieval.py) and register again"
            raise BadRequest(f"few_shot_from: expected an index of this release, got {dataset!r}; it has {known}")
        if dataset not in self._retrievers:
            from megatron_af.retrieval.retriever import Retriever

            self._retrievers[dataset] = Retriever(self._config, dataset)
        return self._retrievers[dataset]

    def _with_examples(
        self, retriever: "Retriever", request: Mapping[str, Any], count: int, where: str
    ) -> Mapping[str, Any]:
        given = [key for key in ("history", "examples") if not is_absent(request.get(key))]
        if given:
            raise BadRequest(f"{where}: expected few_shot or {given[0]}, got both")
        if is_absent(request.get("audio")):
            raise BadRequest(f"{where}: audio: expected a recording to find examples for, got none")
        return {**request, **retriever.request(request["audio"], request.get("prompt") or "", count)}
