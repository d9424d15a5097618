"""tools/generate.py and tools/chat.py with a trained model, as somebody would type them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_af.serve import loaded_model  # noqa: F401 - once, for all forked processes
from tests.data.toy import write_tone
from tests.faults.entry_points import ask
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    for name, seconds in (("dog", 2.0), ("rain", 12.0)):
        write_tone(folder / f"{name}.wav", seconds, len(name))
    (folder / "broken.wav").write_bytes(b"RIFF")
    trained_run(folder, "demo")
    return folder


def run(folder: Path, tool: str, *arguments: str, typed: str = "", ranks: int = 0, code: int = 0) -> str:
    launch = [sys.executable]
    if ranks:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [*launch, str(ROOT / "tools" / tool), *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        input=typed,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def forked(folder: Path, tool: str, *arguments: str, code: int = 0) -> str:
    """What the same command says, without imports of its own."""
    ended = ask(tool, arguments, folder)
    assert ended.code == code, ended.said
    return ended.said


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_question(folder: Path) -> None:
    question = ("runs/demo", "--audio", "dog.wav", "--prompt", "w3 w17")
    whole = run(folder, "generate.py", *question, "max_new_tokens=5")
    assert whole == forked(folder, "generate", *question, "max_new_tokens=5", "--stream") and len(whole.split()) == 5
    scores = forked(folder, "generate", *question, "--option", "w1", "--option", "w2 w3").splitlines()
    assert [line.split()[1:] for line in scores] == [["w1"], ["w2", "w3"]] and float(scores[0].split()[0]) < 0
    rounded = forked(folder, "generate", *question, "--precision", "bf16", "--option", "w1", "--option", "w2 w3")
    assert rounded.splitlines() != scores, "weights of half the bits are likely to differ in the third decimal"
    # The same words in a conversation, which keeps what it read.
    said = run(folder, "chat.py", "runs/demo", "dog.wav", "max_new_tokens=5", typed="w3 w17\n/show\n/reset\nw3 w17\n")
    lines = said.splitlines()
    assert lines[0] == "[dog.wav: 2.0 s]" and lines[1] == whole.rstrip() + " …" == lines[-1]
    assert sum(line.endswith("|") for line in lines) == 6, "a line of bars for each word and the end"


def test_a_file_on_every_number_of_ranks(folder: Path) -> None:
    asked = [{"audio": name, "prompt": f"w{n} w{2 * n}"} for n in range(6) for name in ("dog.wav", "rain.wav", None)]
    asked += [{"prompt": "w3", "audio": "broken.wav"}]
    asked += [{"prompt": "w4", "options": ["w1", "w2"], "decoding": {"seed": 1}}]
    (folder / "asked.jsonl").write_text("".join(json.dumps(request) + "\n" for request in asked))
    answer = ("runs/demo", "--requests", "asked.jsonl", "max_new_tokens=4", "temperature=1.2", "--output")
    told = forked(folder, "generate", *answer, "one.jsonl")
    assert "one.jsonl: 19 answered, 1 refused, 0 of an earlier run" in told
    run(folder, "generate.py", *answer, "two.jsonl", ranks=2)
    run(folder, "generate.py", *answer, "split.jsonl", "--tensor", "2", ranks=2)
    one, two, split = (read(folder / name) for name in ("one.jsonl", "two.jsonl", "split.jsonl"))
    assert [line["id"] for line in one] == [str(n) for n in range(20)]
    assert "expected a recording" in str(one[18]["error"]) and set(one[19]["scores"]) == {"w1", "w2"}  # type: ignore[call-overload]
    for line, other, third in zip(one, two, split, strict=True):
        assert line.get("answer") == other.get("answer") == third.get("answer")
    assert len({str(line.get("answer")) for line in one}) > 5
    assert "20 of an earlier run" in forked(folder, "generate", *answer, "one.jsonl")


def test_what_cannot_be_asked_is_one_message(folder: Path) -> None:
    for tool, arguments, says in (
        ("generate", ["runs/demo"], "expected one of --prompt and --requests"),
        ("generate", ["runs/demo", "--requests", "asked.jsonl"], "--requests: expected --output FILE"),
        ("generate", ["runs/demo", "--prompt", "w1", "tempo=3"], "tempo: no setting of an answer"),
        ("generate", ["runs/demo", "--prompt", "w1", "top_p=2"], "top_p: expected a number above 0, at most 1"),
        ("generate", ["runs/demo", "--prompt", "w1", "--tensor", "2"], "on 1 processes"),
        ("generate", ["runs/demo", "--prompt", "w1", "--audio", "gone.wav"], "'gone.wav'"),
        ("chat", ["runs/demo", "gone.wav"], "'gone.wav'"),
        ("chat", ["runs/gone"], "runs/gone: not there"),
    ):
        said = forked(folder, tool, *arguments, code=2)
        assert says in said and "Traceback" not in said, said
