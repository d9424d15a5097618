"""The MLflow model of a release answers like the release itself, whatever form the audio has."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tokenizers
from tokenizers.models import WordLevel

from megatron_af.config import Config, DataConfig
from megatron_af.digest import recorded_digest
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.registry.release import make_release
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.layout import Resume
from tests import tiny
from tests.distributed import run_distributed

SERVING = Path(__file__).parents[2] / "megatron_af/generate/serving.py"


def config(folder: Path) -> Config:
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    base = tokenizers.Tokenizer(WordLevel(words, unk_token="w0"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.save(str(folder / "tokenizer.json"))
    data = DataConfig(root=str(folder), tokenizer=str(folder / "tokenizer.json"))
    return dataclasses.replace(tiny.config(), output=str(folder / "runs"), data=data)


def save(rank: int, world_size: int, run: Config) -> None:
    groups = process_groups.initialize(run.parallel, run.seed)
    model = build(run, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    checkpoints = Checkpoints(run.stage_folder("stage") / "checkpoints", keep=1)
    checkpoints.save(model, None, groups, Resume(stage="stage", step=1, samples=1, seed=0, world_size=1), {})


def serve(
    rank: int, world_size: int, release: str, batches: list[list[dict[str, Any]]], digest: str, scratch: str
) -> Any:
    # In the process that serves: the file is a model for MLflow as soon as it is imported.
    import mlflow

    from megatron_af.generate.serving import SIGNATURE

    folder = Path(scratch) / "model"
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(SERVING),
        model_config={"release": Path(release).as_uri(), "digest": digest},
        pip_requirements=["megatron-af"],
        signature=SIGNATURE,
    )
    model = mlflow.pyfunc.load_model(str(folder))
    return [list(model.predict(batch, params={"max_new_tokens": 4})) for batch in batches]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = config(tmp_path_factory.mktemp("serving"))
    run_distributed(save, 1, run, timeout=120)
    return make_release(run, "stage")


def tone(folder: Path, hertz: float, seconds: float) -> Path:
    path = folder / f"{hertz}.wav"
    soundfile.write(path, np.sin(np.arange(int(16_000 * seconds)) * hertz / 2500).astype(np.float32), 16_000)
    return path


def test_every_form_of_audio_gets_the_same_answer_and_a_batch_the_answers_of_its_parts(
    release: Path, tmp_path: Path
) -> None:
    low, high = tone(tmp_path, 200, 3), tone(tmp_path, 900, 25)
    text = base64.b64encode(low.read_bytes()).decode()
    prompt = {"prompt": "w3 w17 w5"}
    turns = [{"user": "w4 w5", "assistant": "w6"}]
    shots = [{"audio": str(high), "prompt": "w4 w5", "answer": "w6"}]
    singles: list[dict[str, Any]] = [
        {**prompt, "audio": str(low)},
        {**prompt, "audio": str(high)},
        prompt,
        {**prompt, "audio": str(low), "history": turns},
        {**prompt, "audio": str(low), "examples": shots},
    ]
    forms: list[dict[str, Any]] = [
        {**prompt, "audio": text},
        {**prompt, "audio": f"data:audio/wav;base64,{text}"},
        {**prompt, "audio_bytes": low.read_bytes()},
    ]
    batches = [[each] for each in (*singles, *forms)] + [singles[:2]]
    (answers,) = run_distributed(serve, 1, str(release), batches, recorded_digest(release), str(tmp_path), timeout=240)
    path, *others = (answer[0] for answer in answers[:5])
    assert [answer[0] for answer in answers[5:8]] == [path] * 3
    assert all(isinstance(answer, str) for answer in (path, *others))
    assert answers[8] == [path, others[0]]
    assert len({path, *others}) > 1, "what comes before the question, and the audio, make a difference"


def test_a_release_that_changed_is_not_served(release: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="DigestMismatch"):
        run_distributed(serve, 1, str(release), [], "sha256:0000", str(tmp_path), timeout=120)
