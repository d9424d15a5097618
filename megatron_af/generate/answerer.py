"""A released model in one process.

    answerer = Answerer(Path("runs/demo/releases/3f2a…"))
    answerer.answer([{"audio": "dog.wav", "prompt": "what is it?"}])      # ["a dog"]
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_af.config_file import load_config
from megatron_af.generate.requests import RequestRows
from megatron_af.parallel.device import current_device, make_megatron_portable
from megatron_af.registry.release import CONFIG, TOKENIZER


class Answerer:
    """Loads once, answers batches; calls from several threads wait for each other."""

    def __init__(self, release: Path) -> None:
        import torch.distributed as dist

        make_megatron_portable()
        # Imported only now: megatron-core must have been made portable before its modules run.
        from megatron_af.evaluate.listener import Listener

        if not dist.is_initialized():
            dist.init_process_group(
                current_device().backend, init_method="tcp://127.0.0.1:0", rank=0, world_size=1
            )
        config = load_config(release / CONFIG)
        tokenizer = release / TOKENIZER
        data = replace(config.data, tokenizer=str(tokenizer)) if tokenizer.exists() else config.data
        # The release is laid out like a run of its own.
        config = replace(config, output=str(release.parent), name=release.name, data=data)
        self._listener = Listener(config)
        self._lock = threading.Lock()

    def answer(self, requests: Sequence[Mapping[str, Any]], max_new_tokens: int = 64) -> list[str]:
        """One answer per request. Raises ``BadRequest`` before any is computed."""
        with self._lock, RequestRows() as files:
            rows = [files.row(request, f"request {index}") for index, request in enumerate(requests)]
            config = self._listener.config
            self._listener.config = replace(config, data=replace(config.data, root=str(files.root)))
            self._listener.max_new_tokens = max_new_tokens
            answers = iter(self._listener(rows))
            # Turns and examples before the question are answered as well; theirs is the last of each row.
            return [[next(answers) for _ in row.questions][-1] for row in rows]
