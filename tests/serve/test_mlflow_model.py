"""The MLflow model of a release answers like the release itself, whatever form the audio has, and finds examples."""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import tokenizers
from tokenizers.models import WordLevel

from megatron_af.config import Config, DataConfig, RetrievalConfig, StageConfig
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.progress import silent
from megatron_af.retrieval.build import Builder
from megatron_af.runs.bundle import make_release
from megatron_af.runs.digests import recorded_digest
from megatron_af.runs.paths import Resume
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.objectives.answer import Answer
from megatron_af.train.objectives.contrastive_learner import build_clap
from tests import contrastive_run, tiny
from tests.data.toy import write_manifest
from tests.distributed import RankError, run_distributed

pytestmark = pytest.mark.slow

SERVING = Path(__file__).parents[2] / "megatron_af/serve/mlflow_model.py"


def config(folder: Path) -> Config:
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    base = tokenizers.Tokenizer(WordLevel(words, unk_token="w0"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.save(str(folder / "tokenizer.json"))
    train = write_manifest(
        folder,
        "train",
        [
            Row(
                id=name,
                clips=(Clip(path=tone(folder, hertz, 2).name, duration=2.0),),
                questions=(Question(prompt="w4 w5", output=answer),),
            )
            for name, hertz, answer in (("low", 150, "w6"), ("high", 950, "w7 w8"))
        ],
    )
    data = DataConfig(root=str(folder), tokenizer=str(folder / "tokenizer.json"), datasets={"train": train})
    base = tiny.config()
    clap = StageConfig(objective="contrastive", blend={"train": 1.0}, max_windows=1)
    return dataclasses.replace(
        base,
        output=str(folder / "runs"),
        data=data,
        model=dataclasses.replace(base.model, clap=contrastive_run.CLAP),
        curriculum={"clap": clap, **base.curriculum},
        retrieval=RetrievalConfig(stage="clap", datasets=("train",)),
    )


def save(rank: int, world_size: int, run: Config) -> None:
    groups = process_groups.initialize(run.parallel, run.seed)
    model = build(run, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    resume = Resume(stage="stage", step=1, samples=1, seed=0, world_size=1)
    Checkpoints(run.stage_folder("stage") / "checkpoints", keep=1).save(model, None, groups, resume, {}, Answer.parts)
    clap = build_clap(run, Tokenizer.load(run.data.tokenizer), current_device())
    Checkpoints(run.stage_folder("clap") / "checkpoints", keep=1).save(
        clap, None, groups, resume, {}, ("encoder", "clap")
    )
    with Builder(run, silent()) as builder:
        builder.index("train")


def serve(
    rank: int,
    world_size: int,
    release: str,
    batches: list[list[dict[str, Any]]],
    digest: str,
    scratch: str,
    few_shot: list[list[dict[str, Any]]],
) -> Any:
    # In the process that serves: the file is a model for MLflow as soon as it is imported.
    import mlflow
    from mlflow.exceptions import MlflowException

    from megatron_af.inference.listener import Listener
    from megatron_af.serve.mlflow_model import SIGNATURE

    folder = Path(scratch) / "model"
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(SERVING),
        model_config={"release": Path(release).as_uri(), "digest": digest, "audio_folder": ""},
        pip_requirements=["megatron-af"],
        signature=SIGNATURE,
    )
    model = mlflow.pyfunc.load_model(str(folder))
    if batches:
        with pytest.raises(MlflowException, match=r"expected a file, base64 or bytes, got '/.*which is neither"):
            model.predict(batches[0])  # it names a file
    model = mlflow.pyfunc.load_model(str(folder), model_config={"audio_folder": scratch})
    answers = [list(model.predict(batch, params={"max_new_tokens": 4})) for batch in batches]
    asked: list[list[str]] = []
    answer = Listener.answers

    def watched(listener: Listener, rows: Sequence[Row], *decodings: Any, **how: Any) -> Any:
        asked.extend([question.output for question in row.questions] for row in rows)
        return answer(listener, rows, *decodings, **how)

    Listener.answers = watched  # type: ignore[method-assign]
    for batch in few_shot:
        try:
            answers.append(list(model.predict(batch, params={"max_new_tokens": 4, "few_shot": 1})))
        except MlflowException as error:
            answers.append([str(error)])
    return answers, asked


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
    assert batches[0][0]["audio"] == str(low)
    indexed = tone(tmp_path, 950, 2)
    shown: dict[str, Any] = {
        **prompt,
        "audio": str(indexed),
        "examples": [{"audio": str(indexed), "prompt": "w4 w5", "answer": "w7 w8"}],
    }
    few_shot = [[{**prompt, "audio": str(indexed)}], [prompt], [singles[3]]]
    long = {"prompt": "w3 " * 600, "audio": str(indexed)}
    few_shot.append([long])
    batches.append([shown])
    ((answers, asked),) = run_distributed(
        serve, 1, str(release), batches, recorded_digest(release), str(tmp_path), few_shot, timeout=240
    )
    path, *others = (answer[0] for answer in answers[:5])
    assert [answer[0] for answer in answers[5:8]] == [path] * 3
    assert all(isinstance(answer, str) for answer in (path, *others))
    assert answers[8] == [path, others[0]]
    assert len({path, *others}) > 1, "what comes before the question, and the audio, make a difference"
    (by_hand,), (found,), (no_audio,), (both,), (too_long,) = answers[9:]
    assert asked == [["w7 w8", ""]], "the training row that sounds most alike was found and shown"
    assert found == by_hand
    assert "request 0: audio: expected a recording to find examples for" in no_audio
    assert "request 0: expected few_shot or history, got both" in both
    assert "request 0: expected a question that takes at most 512 tokens, got one of" in too_long


def test_a_release_that_changed_is_not_served(release: Path, tmp_path: Path) -> None:
    with pytest.raises(RankError, match="DigestMismatch"):
        run_distributed(serve, 1, str(release), [], "sha256:0000", str(tmp_path), [], timeout=120)


def test_the_weights_are_held_as_it_is_loaded_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from megatron_af.serve.mlflow_model import AudioFlamingoModel

    held: list[dict[str, Any]] = []
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda address: address)
    monkeypatch.setattr("megatron_af.runs.digests.verify_digest", lambda *given: None)
    monkeypatch.setattr("megatron_af.serve.loaded_model.LoadedModel", lambda place, **how: held.append(how))
    registered = {"release": str(tmp_path), "digest": "sha256:0", "audio_folder": ""}
    for config in (registered, registered | {"precision": ""}, registered | {"precision": "int8"}):
        AudioFlamingoModel().load_context(SimpleNamespace(model_config=config))  # type: ignore[arg-type]
    assert [how["precision"] for how in held] == ["", "", "int8"]
