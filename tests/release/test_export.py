"""A release becomes a folder that answers alike in a process without this project and without megatron-core."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_af.config import Config
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.listener import Listener
from megatron_af.inference.reading import audio_keys
from megatron_af.inference.requests import RequestRows
from megatron_af.runs.bundle import make_release
from megatron_af.serve.places import find
from tests import tiny
from tests.data.toy import write_tone
from tests.distributed import run_distributed
from tests.release.elsewhere import elsewhere
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["af2", "af1"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings, a release of a trained run with adapters, and ``exported``: Qwen2, and OPT."""
    place = tmp_path_factory.mktemp("export")
    for name, seconds in (("dog", 2.0), ("rain", 12.0), ("long", 37.0)):
        write_tone(place / f"{name}.wav", seconds, len(name))
    write_tone(place / "high.wav", 3.0, 4, rate=44_100)
    config: Config = trained_run(
        place, "demo", seed={"af2": 1, "af1": 9}[request.param], lora=tiny.LORA, style=request.param
    )
    done = tool(str(make_release(config, "stage")), str(place / "exported"))
    assert done.returncode == 0, done.stderr
    return place


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/export.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def requests_of(place: Path) -> list[dict[str, Any]]:
    high, rain = str(place / "high.wav"), str(place / "rain.wav")
    return [
        {"prompt": "w3 W17", "audio": str(place / "dog.wav")},
        {"prompt": "w5 w6 w7 w8 w9 w10", "audio": str(place / "long.wav")},
        {"prompt": "w3 <SEP> w4 <audio>", "audio": high},
        {"prompt": "w3"},
        {"prompt": "w8", "audio": rain, "history": [{"user": "w1 w2", "assistant": "w4"}]},
        {"prompt": "w8", "audio": rain, "examples": [{"audio": high, "prompt": "w1 w2", "answer": "w4"}]},
    ]


def chat_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    def asked(prompt: str, audio: str | None = None) -> dict[str, Any]:
        heard = [{"type": "audio", "audio": audio}] if audio else []
        return {"role": "user", "content": [*heard, {"type": "text", "text": prompt}]}

    def said(text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": [{"type": "text", "text": text}]}

    audio = request.get("audio")
    if turns := request.get("history"):
        (turn,) = turns
        return [asked(turn["user"], audio), said(turn["assistant"]), asked(request["prompt"])]
    examples = [(asked(one["prompt"], one["audio"]), said(one["answer"])) for one in request.get("examples", ())]
    return [*(message for pair in examples for message in pair), asked(request["prompt"], audio)]


type Known = tuple[list[Any], list[Any], list[Any]]


def ours(rank: int, world_size: int, release: Path, requests: list[dict[str, Any]]) -> Known:
    """Answers, ids of the prompts, and logits at each one's positions."""
    listener = Listener(*find(release))
    front, (decoder,) = listener.model.front, listener.model.chunks
    with RequestRows() as files, torch.no_grad():
        rows = [files.row(request, str(number)) for number, request in enumerate(requests)]
        answers = listener(rows, root=files.root, decoding=Decoding(max_new_tokens=6))
        batch = listener._batch([listener.prompt(row) for row in rows], files.root)
        (text,) = batch.text.rows
        front.eval()
        logits_BSV = decoder.logits(text, audio_keys(front, batch.audio, text.clips), front.added_rows)
    lengths = (text.segment_BS >= 0).sum(1).tolist()
    ids = [row[:length].tolist() for row, length in zip(text.ids_BS, lengths, strict=True)]
    listener.close()
    return answers, ids, [row[:length].tolist() for row, length in zip(logits_BSV, lengths, strict=True)]


@pytest.fixture(scope="module")
def known(place: Path) -> Known:
    (release,) = (place / "runs/demo/releases").iterdir()
    found: Known = run_distributed(ours, 1, release, requests_of(place))[0]
    return found


LOGITS = """
inputs = inputs_of(chats)
with torch.no_grad():
    logits = model(**inputs).logits
there = inputs["attention_mask"].bool()
found = {
    "ids": [row[mask].tolist() for row, mask in zip(inputs["input_ids"], there)],
    "logits": [row[mask].tolist() for row, mask in zip(logits, there)],
}
"""


def test_logits_are_this_projects_on_the_same_files_and_prompts(place: Path, known: Known) -> None:
    chats = [chat_of(request) for request in requests_of(place)]
    found = elsewhere(place / "exported", LOGITS, chats=chats)
    assert found["ids"] == known[1]
    for theirs, expected in zip(found["logits"], known[2], strict=True):
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(expected), atol=1e-4, rtol=0)


ANSWERS = """
found = {
    "together": answers(chats, max_new_tokens=6),
    "alone": [answers([chat], max_new_tokens=6)[0] for chat in chats],
    "without a cache": answers(chats, max_new_tokens=6, use_cache=False),
    "reversed": answers(chats[::-1], max_new_tokens=6)[::-1],
    "first of beams": len(answers(chats, max_new_tokens=3, num_beams=3, num_return_sequences=2)),
}
model.save_pretrained(folder + "-again", max_shard_size="200KB")
processor.save_pretrained(folder + "-again")
model = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder + "-again", trust_remote_code=True)
found["saved again"] = answers(chats, max_new_tokens=6)
"""


def test_answers_are_this_projects_batched_cached_and_saved_again(place: Path, known: Known) -> None:
    chats = [chat_of(request) for request in requests_of(place)]
    found = elsewhere(place / "exported", ANSWERS, chats=chats)
    assert found.pop("first of beams") == 2 * len(chats)
    assert found == dict.fromkeys(found, known[0])
    assert len(set(known[0])) > 2, "and they are not all one"
    assert len(list((place / "exported-again").glob("model-*.safetensors"))) > 1


PIPELINE = """
from transformers import pipeline

ask = pipeline("any-to-any", model=folder, processor=processor, trust_remote_code=True)
found = [ask(chat, max_new_tokens=6, return_full_text=False)[0]["generated_text"].strip() for chat in chats[:3]]
"""


def test_a_pipeline_answers(place: Path, known: Known) -> None:
    chats = [chat_of(request) for request in requests_of(place)]
    assert elsewhere(place / "exported", PIPELINE, chats=chats) == known[0][:3]


def test_the_card_tells_lineage_and_use(place: Path) -> None:
    card = (place / "exported/README.md").read_text()
    (release,) = (place / "runs/demo/releases").iterdir()
    assert card.startswith("---\nlibrary_name: transformers\n") and 'from_pretrained("exported"' in card
    assert f"| lm | `sha256:{release.name}" in card and "| stage | answer | a × 1, b × 1 | 20 | `*` |" in card
    assert "None of these weights was found." in card and "| clap |" not in card


def test_a_folder_that_holds_something_is_refused(place: Path, tmp_path: Path) -> None:
    (release,) = (place / "runs/demo/releases").iterdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    done = tool(str(release), str(tmp_path / "full"))
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("expected")]
    assert done.returncode == 2 and line.startswith("expected a new or empty folder to write to, got")
    assert [file.name for file in tmp_path.rglob("*")] == ["full", "notes.txt"]


def test_a_model_that_the_code_does_not_compute_is_refused(place: Path, tmp_path: Path) -> None:
    done = tool(str(place / "runs/demo/clap"), str(tmp_path / "new"))
    assert done.returncode == 2
    assert "cannot be exported: stage = clap: expected one with objective answer, got contrastive" in done.stderr
    assert not list(tmp_path.iterdir())


def test_weights_are_float32_and_readable_by_others(place: Path) -> None:
    assert (place / "exported/model.safetensors").stat().st_mode & 0o044 == 0o044
    assert json.loads((place / "exported/config.json").read_text())["dtype"] == "float32"
