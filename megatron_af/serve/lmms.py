"""This project's models in lmms-eval, which finds them by the entry point group ``lmms_eval.models`` (pyproject.toml).

    lmms-eval --model megatron_af --model_args model=runs/demo --tasks my_task --include_path tasks --batch_size 16

``model`` is what ``megatron_af.load`` takes. A task's recordings are files, bytes, or waveforms as ``datasets`` decodes
them (``array`` and ``sampling_rate``). lmms-eval is no dependency: see docs/serving.md.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Any

import soundfile
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from megatron_af.inference.requests import BadRequest
from megatron_af.serve.loaded_model import LoadedModel
from megatron_af.serve.settings import Precision

MANIFEST = ModelManifest(model_id="megatron_af", simple_class_path=f"{__name__}.MegatronAF")
SETTINGS = {"num_beams": "beams", "until": "stop"} | {
    name: name for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
}
"""Their name of a setting -> ours; what else a task states, such as ``do_sample``, decides nothing here."""


class MegatronAF(lmms):  # type: ignore[misc, unused-ignore]
    """
    Args:
        model: folder of a run, a stage, a checkpoint or a release.
        precision: of the weights, as ``megatron_af.load`` takes it.
        batch_size: questions that are answered together.
    """

    def __init__(self, model: str, precision: Precision = "", batch_size: int | str = 16, **_: Any) -> None:
        super().__init__()
        self._model, self._together = LoadedModel(Path(model), precision=precision), int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each question of a task; of each a context, settings, and where its recording is found."""
        asked = [self._request(*request.args) for request in requests]
        return [answer for some in batched(asked, self._together) for answer in self._model.answers(some)]

    def _request(
        self, context: str, how: Mapping[str, Any], heard: Any, document: Any, task: str, split: str
    ) -> dict[str, Any]:
        recordings = list(heard(self.task_dict[task][split][document]) or ())
        if len(recordings) > 1:
            raise BadRequest(f"{task}, document {document}: expected at most one recording, got {len(recordings)}")
        decoding = {ours: how[theirs] for theirs, ours in SETTINGS.items() if how.get(theirs) is not None}
        return {"prompt": context, "audio": _audio(recordings[0]) if recordings else None, "decoding": decoding}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks of log-likelihoods: expected output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds: expected output_type generate_until")


def _audio(recording: Any) -> Any:
    """A file or bytes as they are; a waveform as a file of 32-bit samples."""
    if isinstance(recording, str | Path | bytes):
        return recording
    file = io.BytesIO()
    soundfile.write(file, recording["array"], recording["sampling_rate"], format="WAV", subtype="FLOAT")
    return file.getvalue()
