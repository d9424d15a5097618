"""What is heard piece by piece is what a recording of it gives, and nothing that was heard changes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_af.config import Config
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.listener import Listener
from megatron_af.inference.live import Live
from megatron_af.inference.requests import BadRequest
from tests.distributed import run_distributed
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow

FIVE = Decoding(max_new_tokens=5, logprobs=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return trained_run(tmp_path_factory.mktemp("live"))


def causal(config: Config) -> Config:
    """The same weights, whose layers see the past alone, and hear longer."""
    transform = dataclasses.replace(config.model.transform, sees="past")
    front_end = dataclasses.replace(config.model.front_end, level="recorded")
    model = dataclasses.replace(config.model, transform=transform, front_end=front_end)
    stage = dataclasses.replace(config.curriculum["stage"], max_windows=9)
    return dataclasses.replace(config, model=model, curriculum=config.curriculum | {"stage": stage})


def listen(rank: int, world_size: int, config: Config) -> Any:
    listener, root = Listener(causal(config)), Path(config.data.root)
    rate = listener.config.model.front_end.sample_rate
    generator = np.random.default_rng(0)
    sound = (0.2 * generator.standard_normal(rate * 42)).astype(np.float32)
    sound[rate * 20 :] *= np.sin(np.arange(len(sound) - rate * 20) / 40)

    def offline(seconds: float) -> tuple[Any, list[float]]:
        samples = sound[: round(seconds * rate)]
        soundfile.write(root / "so_far.wav", samples, rate, subtype="FLOAT")
        clip = Clip(path="so_far.wav", duration=len(samples) / rate)
        row = Row(id="x", clips=(clip,), questions=(Question(prompt="w3 w17", output=""),))
        (answer,) = listener.answers([row], [FIVE], root=root)
        assert answer is not None
        return answer.tokens, [score.logprob for score in answer.scores]

    encoded: list[int] = []
    encode = listener.model.front.encode
    listener.model.front.encode = lambda mel_WFM: encoded.append(len(mel_WFM)) or encode(mel_WFM)
    found, heard, place = [], [], 0
    with Live(listener) as live:
        with pytest.raises(BadRequest, match="nothing was heard yet"):
            live.ask("w3 w17")
        for seconds in (0.5, 3.0, 10.0, 10.5, 31.7, 31.7, 42.0):
            while place < round(seconds * rate):
                piece = int(generator.integers(1, rate * 3))
                piece = min(piece, round(seconds * rate) - place)
                live.hear(sound[place : place + piece])
                place += piece
            encoded.clear()
            answer = live.ask("w3 w17", FIVE)
            heard.append(sum(encoded))
            found.append(((answer.tokens, [score.logprob for score in answer.scores]), offline(seconds)))
        assert live.windows == 4 and live.seconds == pytest.approx(42)
        before = live.seconds
        for wrong in (np.zeros((2, 2), np.float32), np.array([np.nan], np.float32), np.zeros(2, np.int16)):
            with pytest.raises(BadRequest, match="expected mono samples"):
                live.hear(wrong)  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match="at most 1800 s"):
            live.hear(np.zeros(rate * 1759, np.float32))
        assert live.seconds == before
    return found, heard


def test_live_answers_are_those_of_the_recording_so_far(config: Config) -> None:
    ((found, heard),) = run_distributed(listen, 1, config)
    for (tokens, logprobs), (wanted, wanted_logprobs) in found:
        assert tokens == wanted
        assert logprobs == pytest.approx(wanted_logprobs, abs=1e-5)
    assert len({tokens for (tokens, _), _ in found}) > 2, "what was heard makes a difference"
    assert heard == [1, 1, 0, 1, 1, 1, 1], "a question hears the unfinished window alone"


def refuse(rank: int, world_size: int, config: Config) -> str:
    with pytest.raises(BadRequest) as refused:
        Live(Listener(config))
    return str(refused.value)


def test_a_model_that_hears_whole_clips_cannot_listen(config: Config) -> None:
    (said,) = run_distributed(refuse, 1, config)
    assert "expected a model trained with model.transform.sees = past, got clip" in said
