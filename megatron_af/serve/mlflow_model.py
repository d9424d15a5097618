"""The MLflow model: what ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` run.

    model = mlflow.pyfunc.load_model("models:/demo@champion")
    model.predict([{"audio_bytes": Path("dog.wav").read_bytes(), "prompt": "what is it?"}], params={"few_shot": 4})
    mlflow models serve -m models:/demo@champion --env-manager local --port 5001

MLflow keeps this file and the address and digest of a release (``runs/bundle.py``), not the weights. ``audio`` may
name a file only where the model was loaded with a folder for them: ``load_model(…, model_config={"audio_folder":
"/data"})``, or ``SERVING_MODEL_CONFIG='{"audio_folder": "/data"}'`` around ``mlflow models serve``. ``precision`` there
says how the weights are held: ``fp32``, ``bf16`` or ``int8``.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

TURN = Object([Property("user", DataType.string), Property("assistant", DataType.string)])
EXAMPLE = Object(
    [Property("audio", DataType.string), Property("prompt", DataType.string), Property("answer", DataType.string)]
)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "prompt"),
            ColSpec(DataType.string, "audio", required=False),
            ColSpec(DataType.binary, "audio_bytes", required=False),
            ColSpec(Array(TURN), "history", required=False),
            ColSpec(Array(EXAMPLE), "examples", required=False),
        ]
    ),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.integer, 64),
            ParamSpec("temperature", DataType.double, 0.0),
            ParamSpec("top_p", DataType.double, 1.0),
            ParamSpec("top_k", DataType.integer, 0),
            ParamSpec("beams", DataType.integer, 1),
            ParamSpec("seed", DataType.long, 0),
            ParamSpec("unsure", DataType.string, ""),
            ParamSpec("few_shot", DataType.integer, 0),
            ParamSpec("few_shot_from", DataType.string, ""),
        ]
    ),
)


class AudioFlamingoModel(PythonModel):
    """Answers a batch of requests (``inference/requests.py``); ``audio_bytes`` replaces ``audio`` where given."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises ``DigestMismatch`` when the release is not the one that was registered."""
        from megatron_af.inference.requests import files_below, no_files
        from megatron_af.runs.digests import verify_digest
        from megatron_af.serve.loaded_model import LoadedModel

        release = Path(mlflow.artifacts.download_artifacts(context.model_config["release"]))
        verify_digest(release, context.model_config["digest"])
        folder = context.model_config.get("audio_folder", "")
        opens = files_below(Path(folder)) if folder else no_files
        self._model = LoadedModel(release, opens=opens, precision=context.model_config.get("precision", ""))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        from megatron_af.inference.requests import BadRequest, is_absent

        requests = []
        for record in model_input.to_dict("records"):
            content = record.pop("audio_bytes", None)
            requests.append(record if is_absent(content) else {**record, "audio": content})
        defaults = {param.name: param.default for param in SIGNATURE.params.params}
        try:
            given = {name: np.asarray(value).item() for name, value in (params or {}).items()}
            return self._model.answers(requests, **(defaults | given))
        except BadRequest as error:  # MLflow's server hides the message of any exception but its own
            raise MlflowException.invalid_parameter_value(str(error)) from error


mlflow.models.set_model(AudioFlamingoModel())
