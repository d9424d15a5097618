"""tools/serve.py with a trained model: the answers of a crowd are those given alone, and memory stays bounded."""

import base64
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.data.toy import write_tone
from tests.serve.running import Running
from tests.trained_run import trained_run
from tools import serve

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLIENTS, ROUNDS = 8, 8
LONGEST = 12
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    for name, seconds in (("dog", 2.0), ("rain", 12.0)):
        write_tone(folder / f"{name}.wav", seconds, len(name))
    trained_run(folder, "demo")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[Running, "subprocess.Popen[str]"]]:
    settings = ["port=0", f"audio_folder={folder}", f"max_new_tokens={LONGEST}", "default_new_tokens=4"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/serve.py"), "runs/demo", *settings],
        cwd=folder,
        env=ENVIRONMENT | {"MALLOC_ARENA_MAX": "1"},  # of many arenas each keeps what it once held
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    said: list[str] = []
    assert process.stderr is not None
    while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", "".join(said))):
        line = process.stderr.readline()
        assert line, "".join(said)
        said.append(line)
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    try:
        yield Running(int(found[1]), None), process
    finally:
        process.terminate()
        assert process.wait() in (0, 128 + 15)


def message(text: str, audio: Any = None) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}]
    return {"role": "user", "content": parts if audio is None else [audio, *parts]}


def request(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": messages} | more


def requests(folder: Path) -> list[dict[str, Any]]:
    """Of every form, some of which must be refused."""
    dog = {"type": "audio_url", "audio_url": {"url": "dog.wav"}}
    sound = base64.b64encode((folder / "rain.wav").read_bytes()).decode()
    rain = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    rain_url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{sound}"}}
    reply = {"role": "assistant", "content": "w6"}
    return [
        request([message("w3 w17", dog)]),
        request([message("w3 w17", rain)]),
        request([message("w3 w17", rain_url)], max_tokens=LONGEST),
        request([{"role": "system", "content": "w2"}, message("w4", dog), reply, message("w3")]),
        request([message("w1 w2", rain), reply, message("w3", dog)]),
        request([message("w5 w6 w7")]),
        request([message("w3 <audio> <SEP> <|endofchunk|> w17", dog)]),
        request([message("w3 " * 600, dog)]),
    ]


def test_a_crowd_gets_the_answers_given_alone(folder: Path, served: tuple[Running, "subprocess.Popen[str]"]) -> None:
    server, process = served
    asked = requests(folder)
    alone = [server.post(body) for body in asked]
    assert [status for status, _ in alone] == [200] * 7 + [400]
    texts = [body["choices"][0]["message"]["content"] if status == 200 else body for status, body in alone]
    assert texts[1] == texts[2][: len(texts[1])] and len(set(map(str, texts))) > 3
    assert "expected a question that takes at most 512 tokens" in texts[7]["error"]["message"]

    def client(number: int) -> list[tuple[int, Any]]:
        mine = [(number + place) % len(asked) for place in range(len(asked))]
        return [(place, server.post(asked[place])) for place in mine]

    memory = []
    for _ in range(ROUNDS):
        with ThreadPoolExecutor(CLIENTS) as pool:
            answered = [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]
        assert len(answered) == CLIENTS * len(asked)
        for place, (status, body) in answered:
            assert status == alone[place][0]
            assert (body["choices"][0]["message"]["content"] if status == 200 else body) == texts[place]
        memory.append(psutil.Process(process.pid).memory_info().rss // 2**20)
    assert server.count('af_batch_requests_bucket{le="1.0"}') < server.count("af_batch_requests_count"), "together"
    assert server.count("af_requests_held") == 0
    # The first rounds meet the largest batches; whatever were kept of a request would be 300 MiB in four rounds.
    assert memory[-1] < memory[3] + 200, f"MiB after each round: {memory}"


def test_the_model_itself_says_the_same(folder: Path, served: tuple[Running, "subprocess.Popen[str]"]) -> None:
    server, _ = served
    program = """
import json
import megatron_af as af

with af.load("runs/demo") as model:
    print(json.dumps([
        model.answer("dog.wav", "w3 w17", max_new_tokens=4),
        model.answer("rain.wav", "w3 w17", max_new_tokens=4),
        model.answer("dog.wav", "w3", history=[{"user": "w2\\nw4", "assistant": "w6"}], max_new_tokens=4),
        model.answer("dog.wav", "w3", examples=[{"audio": "rain.wav", "prompt": "w1 w2", "answer": "w6"}],
                     max_new_tokens=4),
    ]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    asked = requests(folder)
    over_http = [server.post(asked[place])[1]["choices"][0]["message"]["content"] for place in (0, 1, 3, 4)]
    assert over_http == json.loads(done.stdout.splitlines()[-1])


def test_a_user_writes_no_special_tokens(folder: Path, served: tuple[Running, "subprocess.Popen[str]"]) -> None:
    server, _ = served
    dog = {"type": "audio_url", "audio_url": {"url": "dog.wav"}}

    def prompt_tokens(text: str) -> int:
        body = server.post(request([message(text, dog)]))[1]
        return int(body["usage"]["prompt_tokens"])

    # Words, and what is no word: a special token would be one, and a second <audio> would have no recording.
    assert prompt_tokens("w3 < audio > w17") == prompt_tokens("w3 <audio> w17")
    assert prompt_tokens("w3 < SEP > w17") == prompt_tokens("w3 <SEP> w17") > prompt_tokens("w3 w17") + 1


def test_openais_client_streams(folder: Path, served: tuple[Running, "subprocess.Popen[str]"]) -> None:
    server, _ = served
    body = requests(folder)[0]
    whole = server.client.chat.completions.create(**body)
    stream = server.client.chat.completions.create(**body, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
    with pytest.raises(openai.NotFoundError, match="expected 'demo', which is served here"):
        server.client.chat.completions.create(**(body | {"model": "gpt"}))


def test_what_cannot_be_served_is_one_message(folder: Path) -> None:
    for arguments, says in (
        (["runs/gone"], "runs/gone: not there"),
        (["runs/demo", "prt=3"], "did you mean port"),
        (["models:/gone@champion"], "models:/gone@champion: "),
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools/serve.py"), *arguments],
            cwd=folder,
            env=ENVIRONMENT | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and says in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("model", "name"), [("models:/demo@champion", "demo"), ("runs/demo", "")])
@pytest.mark.parametrize("given", ["", "ours"])
def test_clients_call_a_registered_model_by_its_name_there(
    monkeypatch: pytest.MonkeyPatch, model: str, name: str, given: str
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(serve, "named", Path)
    monkeypatch.setattr(serve, "run", lambda place, settings: served.append(settings.name))
    monkeypatch.setattr(sys, "argv", ["serve.py", model, "port=0", *([f"name={given}"] if given else [])])
    assert serve.main() == 0 and served == [given or name]


def test_a_taken_port_is_named_before_a_model_is_looked_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"port={other.getsockname()[1]}"
        command = [sys.executable, str(ROOT / "tools/serve.py"), str(tmp_path / "nothing"), taken]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Address already in use" in done.stderr and "nothing" not in done.stderr
