"""lmms-eval, by its entry point, and EvalScope, through the server, predict the same: ``make test-harnesses``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.toy import write_tone
from tests.servers import ENVIRONMENT, free_port, started
from tests.trained_run import trained_run

pytest.importorskip("lmms_eval", reason="the harnesses have an environment of their own: make test-harnesses")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
QUESTIONS = ("w3 w17", "w5 w6 w7", "w8", "w1 w2", "w20 w21")
SECONDS = (2.0, 12.0, 5.0, 1.0, 23.0)
NEW = 6

TASK = """
task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function toy.recordings
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: NEW, temperature: 0, do_sample: false, until: ["\\n\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
import soundfile

def recordings(document):
    array, rate = soundfile.read(document["path"], dtype="float32")
    return [document["path"] if document["as_file"] else {"array": array, "sampling_rate": rate}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harnesses")
    trained_run(folder, "demo")
    (folder / "tasks").mkdir()
    (folder / "vqa").mkdir()
    questions, messages = [], []
    for number, (question, seconds) in enumerate(zip(QUESTIONS, SECONDS, strict=True)):
        file = folder / f"{number}.wav"
        write_tone(file, seconds, number + 1)
        audio = {"type": "input_audio", "input_audio": {"data": str(file), "format": "wav"}}  # sent as base64
        turn = {"role": "user", "content": [audio, {"type": "text", "text": question}]}
        questions.append({"question": question, "answer": "w6", "path": str(file), "as_file": number % 2 == 0})
        messages.append({"messages": [turn], "answer": "w6"})
    lines(folder / "questions.jsonl", questions)
    lines(folder / "vqa/toy.jsonl", messages)
    (folder / "tasks/toy.yaml").write_text(TASK.replace("FOLDER", str(folder)).replace("NEW", str(NEW)))
    (folder / "tasks/toy.py").write_text(FUNCTIONS)
    return folder


def lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def run(folder: Path, *command: str) -> str:
    """What it says."""
    environment = ENVIRONMENT | {"HF_HOME": str(folder / "hub"), "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return (done.stdout + done.stderr)[-4000:]


def by_lmms_eval(folder: Path) -> list[str]:
    said = run(
        folder, str(BIN / "lmms-eval"), "eval", "--model", "megatron_af", "--model_args", "model=runs/demo",
        "--tasks", "toy", "--include_path", "tasks", "--batch_size", "2", "--log_samples", "--output_path", "lmms",
    )  # fmt: skip
    found = list((folder / "lmms").rglob("*samples_toy.jsonl"))
    assert found, said  # it ends with 0 whatever happens
    (samples,) = found
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    return [record["filtered_resps"] for record in sorted(records, key=lambda record: record["doc_id"])]


def by_evalscope(folder: Path) -> list[str]:
    port = free_port()
    serve = [sys.executable, str(ROOT / "tools/serve.py"), "runs/demo", f"port={port}"]
    with started(folder, f"http://127.0.0.1:{port}/health", *serve):
        run(
            folder, str(BIN / "evalscope"), "eval", "--model", "demo", "--api-url", f"http://127.0.0.1:{port}/v1",
            "--api-key", "none", "--eval-type", "openai_api", "--datasets", "general_vqa", "--dataset-args",
            json.dumps({"general_vqa": {"local_path": str(folder / "vqa"), "subset_list": ["toy"]}}),
            "--generation-config", json.dumps({"max_tokens": NEW, "temperature": 0}),
            "--work-dir", "evalscope", "--no-timestamp",
        )  # fmt: skip
    (predictions,) = (folder / "evalscope/predictions").rglob("*.jsonl")
    records = [json.loads(line) for line in predictions.read_text().splitlines()]
    outputs = [record["model_output"] for record in sorted(records, key=lambda record: record["index"])]
    return [output["choices"][0]["message"]["content"] for output in outputs]


def test_both_harnesses_have_the_same_predictions(folder: Path) -> None:
    theirs = by_lmms_eval(folder)
    assert len(theirs) == len(QUESTIONS) and len(set(theirs)) > 2
    assert by_evalscope(folder) == theirs
