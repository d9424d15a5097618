"""Examples that were read once: answers are those of the whole text, and only the question is read and heard anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_af.config import Config
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.templates import TooLong
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.listener import Listener
from megatron_af.inference.reading import Reading
from megatron_af.inference.taught import Taught
from tests.data.toy import write_tone
from tests.distributed import run_distributed
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow

FEW = Decoding(max_new_tokens=5, logprobs=3)
SEARCHED = Decoding(max_new_tokens=3, beams=3)
SECONDS = (1.0, 12.0, 2.0, 3.0, 4.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = trained_run(tmp_path_factory.mktemp("taught"))
    for number, seconds in enumerate(SECONDS):
        write_tone(Path(config.data.root) / f"{number}.wav", seconds, number)
    return config


def examples(label: str, *clips: int) -> Row:
    heard = tuple(Clip(path=f"{number}.wav", duration=SECONDS[number]) for number in clips)
    pairs = (Question(prompt="w3 w17", output=label),) * len(heard)
    return Row(id=label, clips=heard, questions=pairs, template="interleaved")


def asked(clip: int, prompt: str = "w3 w17") -> Row:
    return Row(
        id="asked",
        clips=(Clip(path=f"{clip}.wav", duration=SECONDS[clip]),),
        questions=(Question(prompt=prompt, output=""),),
    )


def whole(shown: list[Row], question: Row) -> Row:
    rows = [*shown, question]
    return Row(
        id="whole",
        clips=tuple(clip for row in rows for clip in row.clips),
        questions=tuple(q for row in rows for q in row.questions),
        template="interleaved",
    )


def teach(rank: int, world_size: int, config: Config, immediate: bool) -> dict[str, Any]:
    hears = replace(config.model.cross_attention, immediate=immediate)
    config = replace(config, model=replace(config.model, cross_attention=hears))
    listener, root = Listener(config), Path(config.data.root)
    found: dict[str, Any] = {"alike": [], "read": [], "heard": [], "counted": []}
    taught, shown = Taught(listener), [examples("w5 w6", 0, 1), examples("w9", 2)]
    read, encode = Reading.read, listener.model.front.encode

    def reads(reading: Reading, ids: Any, **how: Any) -> torch.Tensor:
        found["read"].append(len(ids[0]))
        return read(reading, ids, **how)

    def encodes(mel_WFM: torch.Tensor) -> torch.Tensor:
        found["heard"].append(len(mel_WFM))
        return encode(mel_WFM)

    for number, row in enumerate(shown, 1):
        taught.add(row, root)
        for question in (asked(3), asked(4, "w7 w8 w9"), asked(3)):
            (wanted,) = listener.answers([whole(shown[:number], question)], [FEW], root=root)
            Reading.read, listener.model.front.encode = reads, encodes  # type: ignore[method-assign]
            said = taught.answer(question, FEW, root)
            Reading.read, listener.model.front.encode = read, encode  # type: ignore[method-assign]
            assert wanted is not None
            logprobs = [[score.logprob for score in answer.scores] for answer in (said, wanted)]
            alike = torch.allclose(*map(torch.tensor, logprobs), atol=1e-4)
            found["alike"].append(said.tokens == wanted.tokens and alike)
            found["counted"] += [(said.prompt_tokens, wanted.prompt_tokens)]
    (wanted,) = listener.answers([whole(shown, asked(4))], [SEARCHED], root=root)
    assert wanted is not None
    found["searched"] = taught.answer(asked(4), SEARCHED, root).tokens == wanted.tokens
    before = taught.answer(asked(3), FEW, root).tokens
    try:
        taught.add(examples("w1 " * 600, 4), root)
    except TooLong as error:
        found["too long"] = error.max_tokens
    found["stays"] = len(taught) == 3 and taught.answer(asked(3), FEW, root).tokens == before
    found["question"] = len(listener.prompt(asked(3)).segments[-1])
    listener.close()
    return found


@pytest.mark.parametrize("immediate", [False, True], ids=["all audio so far", "the latest alone"])
def test_it_answers_as_if_all_examples_stood_before_the_question(config: Config, immediate: bool) -> None:
    (found,) = run_distributed(teach, 1, config, immediate, timeout=200)
    assert found["alike"] == [True] * 6 and found["searched"]
    assert all(said == wanted for said, wanted in found["counted"]), "tokens of the whole prompt, examples and all"
    assert found["heard"] == [1] * 6, "only what is asked about is heard anew"
    first = [length for length in found["read"] if length > 1]
    assert max(first) <= found["question"] + 2, "and only the question is read"
    assert found["too long"] == 512 and found["stays"], "what cannot be taught changes nothing"
