"""A file of requests is answered line by line, and nothing is answered twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_af.foreign import ForeignError
from megatron_af.inference.requests import BadRequest
from megatron_af.inference.writing import Answer, TokenScore
from megatron_af.progress import silent
from megatron_af.serve.answer_file import Counts, answer_file, read_requests
from tests.distributed import run_distributed

ASKED = [{"prompt": f"w{n}", "id": f"q{n}"} for n in range(40)]


class Parrot:
    """Says a prompt back; ``bad`` cannot be answered, ``stop`` ends the process it is asked in."""

    def __init__(self, rank: int = 0, size: int = 1, weights: str = "sha256:1") -> None:
        self.data_rank, self.data_size, self._weights = rank, size, weights
        self.asked: list[str] = []

    def complete(self, requests: Any, *, few_shot: int, few_shot_from: str, **decoding: Any) -> list[Answer]:
        prompts = [str(request["prompt"]) for request in requests]
        if "bad" in prompts:
            raise BadRequest(f"request {prompts.index('bad')}: prompt: expected better")
        if "stop" in prompts:
            raise KeyboardInterrupt
        self.asked += prompts
        scores = (TokenScore(token=1, text="x", logprob=-0.5),) if decoding.get("logprobs") is not None else ()
        return [
            Answer(text=f"{prompt}!", tokens=(1,), finish="stop", prompt_tokens=1, scores=scores) for prompt in prompts
        ]

    def basis(self, *, few_shot: int, few_shot_from: str) -> dict[str, str]:
        return {"weights": self._weights}

    def scores(self, audio: Any, prompt: str, options: list[str], **talk: Any) -> dict[str, float]:
        return {option: -float(len(option)) for option in options}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def write(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer(model: Any, source: Path, output: Path, **decoding: Any) -> Counts:
    return answer_file(model, source, output, decoding, progress=silent())


@pytest.mark.usefixtures("world")
def test_each_line_has_its_answer_or_its_error(tmp_path: Path) -> None:
    asked = [*ASKED[:3], {"prompt": "bad"}, {"prompt": "w9", "options": ["no", "maybe"]}]
    source, output = write(tmp_path / "asked.jsonl", asked), tmp_path / "answers.jsonl"
    model = Parrot()
    assert answer(model, source, output, logprobs=0) == Counts(answered=4, refused=1, kept=0)
    lines = read(output)
    assert [line["id"] for line in lines] == ["q0", "q1", "q2", "3", "4"]
    assert [line.get("answer") for line in lines] == ["w0!", "w1!", "w2!", None, "w9!"]
    assert lines[3]["error"] == "prompt: expected better" and lines[0]["logprobs"] == [["x", -0.5]]
    assert lines[4]["scores"] == {"no": -2.0, "maybe": -5.0} and lines[4]["likeliest"] == "no"
    assert list(tmp_path.glob("answers.jsonl.*")) == []


@pytest.mark.usefixtures("world")
def test_a_request_whose_id_is_null_has_none(tmp_path: Path) -> None:
    source = write(tmp_path / "asked.jsonl", [{"prompt": "x", "id": 0}, {"prompt": "y", "id": None}])
    answer(Parrot(), source, tmp_path / "answers.jsonl")
    assert [line["id"] for line in read(tmp_path / "answers.jsonl")] == [0, "1"], "as given, or tables do not join"


@pytest.mark.usefixtures("world")
def test_only_what_changed_is_asked_again(tmp_path: Path) -> None:
    source, output = write(tmp_path / "asked.jsonl", ASKED), tmp_path / "answers.jsonl"
    answer(Parrot(), source, output)
    write(source, [{"prompt": "new"}, *ASKED[1:]])
    model = Parrot()
    assert answer(model, source, output) == Counts(answered=40, refused=0, kept=39)
    assert model.asked == ["new"] and [line["id"] for line in read(output)[:2]] == ["0", "q1"]
    for other, why in ((Parrot(), "other settings"), (Parrot(weights="sha256:2"), "other weights")):
        answer(other, source, output, temperature=1.0)
        assert len(other.asked) == 40, why


@pytest.mark.usefixtures("world")
def test_a_recording_that_changed_or_came_is_asked_about_again(tmp_path: Path) -> None:
    dog, rain, shown = (tmp_path / name for name in ("dog.wav", "rain.wav", "shown.wav"))
    dog.write_bytes(b"woof")
    asked = [
        {"prompt": "w0", "audio": str(dog)},
        {"prompt": "w1", "audio": f"file://{rain}"},
        {"prompt": "w2", "audio": str(dog), "examples": [{"audio": str(shown), "prompt": "x", "answer": "y"}]},
        {"prompt": "w3"},
    ]
    source, output = write(tmp_path / "asked.jsonl", asked), tmp_path / "answers.jsonl"
    answer(Parrot(), source, output)
    for changed, again in ((rain, ["w1"]), (shown, ["w2"]), (dog, ["w0", "w2"])):
        changed.write_bytes(b"another")
        model = Parrot()
        assert answer(model, source, output).kept == 4 - len(again)
        assert model.asked == again, changed.name


@pytest.mark.usefixtures("world")
def test_a_run_that_was_ended_is_gone_on_with(tmp_path: Path) -> None:
    asked = [*ASKED[:20], {"prompt": "stop"}, *ASKED[20:]]
    source, output = write(tmp_path / "asked.jsonl", asked), tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(Parrot(), source, output)
    part = tmp_path / "answers.jsonl.part-0"
    assert len(part.read_text().split()) > 16 and not output.exists()
    part.write_text(part.read_text().rstrip("\n")[:-5])  # the last line is broken off
    with pytest.raises(KeyboardInterrupt):
        answer(Parrot(), source, output)
    write(source, ASKED)
    model = Parrot()
    assert answer(model, source, output).kept == 15
    assert [line["answer"] for line in read(output)] == [f"w{n}!" for n in range(40)]


def shared(rank: int, world_size: int, source: Path, output: Path) -> Any:
    model = Parrot(rank, world_size)
    return answer(model, source, output), model.asked


@pytest.mark.slow
def test_ranks_share_the_requests(tmp_path: Path) -> None:
    source, output = write(tmp_path / "asked.jsonl", ASKED), tmp_path / "answers.jsonl"
    results = run_distributed(shared, 3, source, output)
    assert {counts.answered for counts, _ in results} == {40}
    assert sorted(len(asked) for _, asked in results) == [13, 13, 14]
    assert [line["answer"] for line in read(output)] == [f"w{n}!" for n in range(40)]


def shared_late(rank: int, world_size: int, source: Path, output: Path) -> Any:
    """The folder as a volume with a cache shows it: to one machine without what was there, to none with what is new."""
    listed = [] if rank else list(output.parent.iterdir())
    Path.glob = lambda self, pattern: iter([path for path in listed if path.match(pattern)])  # type: ignore[method-assign, assignment]
    return shared(rank, world_size, source, output)


@pytest.mark.slow
def test_a_folder_that_ranks_see_late_costs_no_answer_and_asks_none_twice(tmp_path: Path) -> None:
    source, output = write(tmp_path / "asked.jsonl", ASKED), tmp_path / "answers.jsonl"
    run_distributed(shared, 2, write(tmp_path / "first.jsonl", ASKED[:20]), output)
    output.rename(tmp_path / "answers.jsonl.part-7")  # as of a run on more ranks, which was ended
    results = run_distributed(shared_late, 2, source, output)
    assert {counts.kept for counts, _ in results} == {20} and [len(asked) for _, asked in results] == [10, 10]
    assert [line["answer"] for line in read(output)] == [f"w{n}!" for n in range(40)]


@pytest.mark.usefixtures("world")
def test_no_file_of_something_else_is_written_over(tmp_path: Path) -> None:
    source, link = write(tmp_path / "asked.jsonl", ASKED[:2]), tmp_path / "link.jsonl"
    link.symlink_to(source)
    other = write(tmp_path / "labels.jsonl", [{"label": "a dog"}])
    for output, holds in ((source, "the requests themselves"), (link, "the requests"), (other, "something else")):
        before = output.read_text()
        with pytest.raises(BadRequest, match=rf"--output: .* got {output}, which holds {holds}"):
            answer(Parrot(), source, output)
        assert output.read_text() == before
    (tmp_path / "empty.jsonl").touch()
    assert answer(Parrot(), source, tmp_path / "empty.jsonl").answered == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "its JSON ends too early"),
        ("[1]", "expected an object with prompt"),
        ('{"prompt": "x", "prompt": "y"}', "has the key 'prompt' twice"),
        ('{"prompt": "\\ud83d"}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
@pytest.mark.usefixtures("world")
def test_a_line_that_is_no_request_costs_no_other_one(tmp_path: Path, line: str, says: str) -> None:
    source, output = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    source.write_text('{"prompt": "x"}\n\n' + line + '\n{"prompt": "y", "id": "7"}\n')
    assert answer(Parrot(), source, output) == Counts(answered=2, refused=1, kept=0)
    first, lost, last = read(output)
    assert (first["answer"], last["answer"], last["id"], lost["id"]) == ("x!", "y!", "7", "1")
    assert lost["error"].startswith(f"{source}, line 3: {says}")
    source.write_text(line + "\n")
    with pytest.raises(ForeignError, match=f"asked.jsonl, line 1: {says}"):
        answer(Parrot(), source, output)


@pytest.mark.usefixtures("world")
def test_ends_of_lines_that_json_has_none_of_stay_in_their_text(tmp_path: Path) -> None:
    source, output = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    source.write_text(json.dumps({"prompt": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n")
    assert answer(Parrot(), source, output) == Counts(answered=1, refused=0, kept=0)
    assert answer(Parrot(), source, output) == Counts(answered=1, refused=0, kept=1)
    source.write_text('[\n{"prompt": "x"}\n]')
    with pytest.raises(ForeignError, match="is a JSON list: write a line for each"):
        list(read_requests(source))
