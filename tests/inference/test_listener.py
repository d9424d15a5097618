"""A listener answers each row's last question, says what is too long, and holds nothing that grows with its calls."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_af.config import Config, ConfigError
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.templates import TooLong
from megatron_af.decoder import initialization
from megatron_af.inference import embedder as embedder_module
from megatron_af.inference import listener as module
from megatron_af.inference.answers import Answering
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.embedder import ClapEmbedder
from megatron_af.inference.listener import Listener
from megatron_af.inference.reading import Reading
from megatron_af.inference.requests import BadRequest
from megatron_af.inference.writing import Answer
from megatron_af.runs.calibration import calibrate
from tests.data.toy import write_tone
from tests.distributed import run_distributed
from tests.examples import run_example
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = trained_run(tmp_path_factory.mktemp("listener"))
    for number in range(4):
        write_tone(Path(config.data.root) / f"{number}.wav", 1.0 + number, number)
    return config


def clip(number: int) -> Clip:
    return Clip(path=f"{number}.wav", duration=1.0 + number)


def asks(*prompts: str) -> tuple[Question, ...]:
    return tuple(Question(prompt=prompt, output="w1 w2") for prompt in prompts)


TALK = Row(id="talk", clips=(clip(0),), questions=asks("w3 w17", "w5", "w3 w17"), template="dialogue")
SHOTS = Row(id="shots", clips=(clip(1), clip(2)), questions=asks("w3", "w3"), template="interleaved")
LONG = Row(id="long", clips=(clip(3),), questions=asks("w1 " * 600))
TEXT = Row(id="text", questions=asks("w9 w8"))


def answer(rank: int, world_size: int, config: Config, rows: Sequence[Row]) -> Any:
    listener = Listener(config)
    asked: list[list[int]] = []
    decode, three = module.write, Decoding(max_new_tokens=3)

    def watched(reading: Reading, prompts: Any, *rest: Any, **how: Any) -> Any:
        asked.append([ids.count(listener.tokenizer.audio_id) for ids in prompts])
        return decode(reading, prompts, *rest, **how)

    module.write = watched
    together = listener(rows, decoding=three)
    together_asked = list(asked)
    alone = [listener([row], decoding=three)[0] for row in rows]
    module.write = decode
    return together, alone, together_asked


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_row_gets_one_answer_the_one_that_it_gets_alone(config: Config, ranks: int) -> None:
    rows = [*TALK.each_question(), *SHOTS.each_question(), LONG, TEXT]
    results = run_distributed(answer, ranks, config, rows)
    for together, alone, asked in results:
        assert together == alone == results[0][0]
        assert [a is None for a in together] == [row.id == "long" for row in rows]
        if ranks == 1:
            assert asked == [[1, 1, 1, 2, 0]], "one text row for each question that fits, examples are not answered"
    assert len({a for a in results[0][0] if a is not None}) > 1


def hear_without_drawing(rank: int, world_size: int, config: Config) -> list[str | None]:
    def refuse(*_: object) -> Any:
        raise AssertionError("drawn, to be overwritten: 37 s for three billion")

    initialization.fresh = refuse  # type: ignore[assignment]
    return Listener(config)([TEXT], decoding=Decoding(max_new_tokens=3))


def test_no_weight_is_drawn_that_is_then_read(config: Config) -> None:
    assert run_distributed(hear_without_drawing, 1, config) == [run_distributed(answer, 1, config, [TEXT])[0][0]]


def asked_about_strange(rank: int, world_size: int, config: Config) -> Any:
    listener, root = Listener(config), Path(config.data.root)
    time_T = np.arange(16_000) / 16_000
    soundfile.write(root / "whistle.wav", 0.3 * np.sin(2 * np.pi * 1_000 * time_T), 16_000)
    known, strange = Row(id="known", clips=(clip(0),), questions=asks("w3")), Row(
        id="strange", clips=(Clip(path="whistle.wav", duration=1.0),), questions=asks("w3")
    )
    none = Decoding(max_new_tokens=3, unsure="none")
    given = dataclasses.replace(none, least_confidence=0)
    with pytest.raises(BadRequest, match="unsure: nobody has found out how sure this model must be"):
        listener.answers([known], [none])
    takes = [Clip(path=f"noise/{take}.wav", duration=1.0) for take in range(4)]
    for take, noise in enumerate(takes):
        write_tone(root / noise.path, noise.duration, 10 + take)
    vectors_ND = np.stack([listener.vector(Row(id="d", clips=(noise,))) for noise in [clip(0), *takes]])
    told = {}
    for least in (0.0, 1.0):
        listener.calibration = calibrate("d", "w", [least], [True], vectors_ND)
        told[least] = listener.answers([known, strange, TEXT], [none] * 3)
    return told, listener.answers([known, strange], [given] * 2), listener.told([known], decoding=given)


def test_what_is_unlikely_or_about_a_strange_sound_is_told_to_be_none(config: Config) -> None:
    """Noise is known here, a whistle is not; what is asked about nothing heard goes by its confidence alone."""
    ((told, given, shared),) = run_distributed(asked_about_strange, 1, config)
    sure, never = told[0.0], told[1.0]
    assert [answer.text == "none" for answer in sure] == [False, True, False]
    assert [answer.text for answer in never] == ["none"] * 3 and all(0 < a.confidence < 1 for a in never)
    assert [answer.said for answer in never] == [answer.said for answer in sure]
    assert sure[1].said == given[1].text != "none", "who gives a confidence is asked for no likeness"
    assert [answer.text for answer in shared] == [given[0].text]


def handles() -> tuple[int, int]:
    """Threads and open files of this process."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def loading() -> set[str]:
    """Names of the threads that read and decode."""
    readers = {thread.name for thread in threading.enumerate() if thread.name.startswith("clips")}
    named = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    return readers | {name for name in named if "DALI" in name}


def hold(rank: int, world_size: int, config: Config, other: Path) -> tuple[list[tuple[int, int]], set[str], set[str]]:
    """Threads and open files after each of 60 calls; and who loads before and after the models are closed."""
    found = []
    listener = Listener(config)
    embedder = ClapEmbedder(dataclasses.replace(config, stage="clap"))
    rows = [Row(id=str(n), clips=(clip(n),), questions=asks("w3")) for n in range(4)]
    for call in range(60):
        some = rows if not call else rows[: 1 + call % 4]
        root = other if call % 2 else None
        listener(some, root=root, decoding=Decoding(max_new_tokens=1))
        embedder.audio(some, root=root)
        found.append(handles())
    before = loading()
    embedder.close()
    listener.close()
    return found, before, loading()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_threads_and_open_files_do_not_grow_with_the_calls(config: Config, tmp_path: Path) -> None:
    for number in range(4):
        write_tone(tmp_path / f"{number}.wav", 1.0 + number, number)
    workers = 3
    several = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
    ((calls, before, after),) = run_distributed(hold, 1, several, tmp_path, timeout=180)
    threads, files = zip(*calls, strict=True)
    assert len(set(files)) == 1
    assert max(threads) <= threads[0] + 2 * workers, "two pools of readers, whose threads begin when they are needed"
    assert {name.split("_")[0] for name in before} > {"clips"} and not after, "they end with the models"


def show(rank: int, world_size: int, config: Config) -> Any:
    row = Row(id="r", clips=(clip(0),), questions=asks("w3"))
    given = {"rows": [row], "decodings": [Decoding(max_new_tokens=2, logprobs=1)], "options": [["w1", "w2 w3"]]}
    names = run_example(module, config=config, **given)
    heard = run_example(embedder_module, config=dataclasses.replace(config, stage="clap"), rows=[row])
    (answer,), (scores,) = names["answers"], names["logprobs"]
    assert len(answer.scores) == len(answer.tokens) and len(scores) == 2 and max(scores) < 0
    return names["texts"], len(names["looks"]), heard["audio_NJ"].shape, heard["text_TJ"].shape


def test_the_examples_run(config: Config) -> None:
    (((answer,), looks, audio, text),) = run_distributed(show, 1, config)
    assert isinstance(answer, str) and looks == 1 and audio == text == (1, 8)


def bounded(rank: int, world_size: int, config: Config) -> list[tuple[int, str]]:
    """Two that join, where a text may have as many places as TEXT's prompt and one more."""
    listener, told = Listener(config), list[Any]()
    listener.model.chunks[0].places = len(listener.prompt(TEXT).segments[-1]) + 1
    together = Answering(listener.tokenizer)
    listener.join(together, [TEXT, TEXT], [Decoding(max_new_tokens=new) for new in (1, 9)], tell=[told.append] * 2)
    while together.rows:
        together.step()
    return [(len(said.tokens), said.finish) for said in told if isinstance(said, Answer)]


def test_who_joins_ends_where_the_positions_do(config: Config) -> None:
    (found,) = run_distributed(bounded, 1, config)
    assert found == [(1, "length"), (2, "length")]


def refuse(rank: int, world_size: int, config: Config) -> list[str]:
    listener, said = Listener(config), []
    for action in (
        lambda: listener.prompt(LONG),
        lambda: Listener(dataclasses.replace(config, stage="clap")),
        lambda: ClapEmbedder(config),
    ):
        with pytest.raises((TooLong, ConfigError)) as error:
            action()
        said.append(str(error.value))
    return said


def test_what_cannot_be_asked_is_refused(config: Config) -> None:
    ((too_long, contrastive, answering),) = run_distributed(refuse, 1, config)
    assert "row long: its question takes 602 tokens, the stage's max_text_tokens is 512" in too_long
    assert "stage = clap: its objective gives no answers" in contrastive
    assert "stage = stage: its objective is no contrastive one" in answering
