"""Each probe changes what it says and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from dali_pipes.waves import read_wave
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.benchmarks import Asked
from megatron_af.evaluate.probes import cited_span, moved, other_span, probed
from megatron_af.inference.looks import Look

RATE = 16_000


@pytest.fixture
def asked(tmp_path: Path) -> list[Asked]:
    (tmp_path / "in").mkdir()
    found = []
    for i, answer in enumerate(("rain", "wind", "rain")):
        wave_T = np.linspace(0.1 * i, 0.5, 2 * RATE, dtype=np.float32)
        soundfile.write(tmp_path / f"in/{i}.wav", wave_T, RATE, subtype="FLOAT")
        question = Question(prompt="what?", output=answer, options=("rain", "wind", "bells"))
        clip = Clip(path=f"in/{i}.wav", start=0.5, duration=1.0)
        found.append(Asked(id=str(i), row=Row(id=str(i), clips=(clip,), questions=(question,)), references=(answer,)))
    return found


def ask(probe: str, asked: list[Asked], folder: Path) -> tuple[list[Row], Path | None]:
    return probed(probe, asked, "{question} {options}", DataRoot(str(folder)), folder / "made", RATE)


def test_silence_is_as_long_and_nothing_else(asked: list[Asked], tmp_path: Path) -> None:
    rows, root = ask("silent", asked, tmp_path)
    assert root == tmp_path / "made" and len({row.clips[0].path for row in rows}) == 1
    wave_T, rate = soundfile.read(root / rows[0].clips[0].path)
    assert rate == RATE and len(wave_T) == RATE and not wave_T.any()
    assert rows[0].questions[0].prompt == "what? (A) rain (B) wind (C) bells"


def test_a_shifted_recording_has_its_second_half_first(asked: list[Asked], tmp_path: Path) -> None:
    rows, root = ask("shifted", asked, tmp_path)
    assert root is not None and len({row.clips[0].path for row in rows}) == 3
    before_T = read_wave(tmp_path / "in/1.wav", start=0.5, duration=1.0, sample_rate=RATE)
    after_T, _ = soundfile.read(root / rows[1].clips[0].path, dtype="float32")
    np.testing.assert_array_equal(after_T, np.concatenate([before_T[RATE // 2 :], before_T[: RATE // 2]]))
    stamp = (root / rows[1].clips[0].path).stat().st_mtime_ns
    assert ask("shifted", asked, tmp_path)[0] == rows and (root / rows[1].clips[0].path).stat().st_mtime_ns == stamp


def test_pieces_that_lie_close_in_recordings_with_long_titles_are_kept_apart(tmp_path: Path) -> None:
    title = "雨" * 80  # 244 bytes of the 255 that a name may have
    wave_T = np.linspace(0.0, 0.5, 20 * RATE, dtype=np.float32)
    soundfile.write(tmp_path / f"{title}.wav", wave_T, RATE, format="WAV", subtype="FLOAT")
    asked = []
    for start in (10.00001, 10.00008):
        clip = Clip(path=f"{title}.wav", start=start, duration=1.0)
        row = Row(id=str(start), clips=(clip,), questions=(Question(prompt="what?", output="rain"),))
        asked.append(Asked(id=row.id, row=row, references=("rain",)))
    rows, root = probed("shifted", asked, "{question}", DataRoot(str(tmp_path)), tmp_path / "made", RATE)
    assert root is not None
    for one, row in zip(asked, rows, strict=True):
        before_T = read_wave(tmp_path / f"{title}.wav", start=one.row.clips[0].start, duration=1.0, sample_rate=RATE)
        after_T, _ = soundfile.read(root / row.clips[0].path, dtype="float32")
        np.testing.assert_array_equal(after_T, np.roll(before_T, RATE // 2))


def test_options_move_and_audio_is_exchanged(asked: list[Asked], tmp_path: Path) -> None:
    assert moved(("a", "b", "c")) == ("c", "a", "b") and moved(()) == ()
    rows, root = ask("options", asked, tmp_path)
    assert root is None and rows[0].clips == asked[0].row.clips
    assert rows[0].questions[0].prompt == "what? (A) bells (B) rain (C) wind"
    exchanged, root = ask("exchanged", asked, tmp_path)
    assert root is None and exchanged[1].clips[0].path in ("in/0.wav", "in/2.wav")
    assert exchanged[0].clips[0].path == "in/1.wav" and exchanged[0].questions[0].output == "rain"


def test_a_span_is_muted_and_nothing_else(asked: list[Asked], tmp_path: Path) -> None:
    spans = [(0.25, 0.5), (0.0, 0.25), (0.0, 0.0)]
    rows, root = probed("cited", asked, "{question}", DataRoot(str(tmp_path)), tmp_path / "made", RATE, spans)
    assert root is not None
    for row, whole, (start, end) in zip(rows, range(3), spans, strict=True):
        before_T = read_wave(tmp_path / f"in/{whole}.wav", start=0.5, duration=1.0, sample_rate=RATE)
        after_T, _ = soundfile.read(root / row.clips[0].path, dtype="float32")
        before_T[round(start * RATE) : round(end * RATE)] = 0.0
        np.testing.assert_array_equal(after_T, before_T)
    rows, _ = probed("uncited", asked, "{question}", DataRoot(str(tmp_path)), tmp_path / "made", RATE, spans)
    silent_T = soundfile.read(root / rows[0].clips[0].path, dtype="float32")[0] == 0.0
    assert silent_T.sum() == pytest.approx(RATE / 4, abs=1) and not silent_T[RATE // 4 : RATE // 2].any()


def test_the_cited_span_is_where_most_attention_lies(asked: list[Asked]) -> None:
    """Two bands of ten steps, 0.1 s each, of a recording of one second in a window of two."""
    seconds_L = np.tile(np.arange(20) * 0.1, 2)
    weights_L = np.full(40, 0.01)
    weights_L[[3, 24]] = 0.3  # 0.3 s in one band and 0.4 s in the other
    weights_L[15] = 0.9  # behind the recording's end
    look = Look(prompt="?", tokens=("a",), weights_TL=weights_L[None], token_seconds_L=seconds_L, seconds=2.0)
    start, end = cited_span(look, asked[0])
    assert (start, end) == pytest.approx((0.3, 0.5))


@pytest.mark.parametrize(("span", "duration"), [((0.3, 0.5), 1.0), ((0.0, 0.2), 1.0), ((0.8, 1.0), 1.0)])
def test_another_span_is_as_long_and_shares_nothing(span: tuple[float, float], duration: float) -> None:
    drawn = [other_span(span, duration, str(seed)) for seed in range(200)]
    for start, end in drawn:
        assert end - start == pytest.approx(span[1] - span[0]) and start >= 0 and end <= duration + 1e-9
        assert end <= span[0] + 1e-9 or start >= span[1] - 1e-9
    sides = {start < span[0] for start, _ in drawn}
    assert len(sides) == (2 if 0.2 <= span[0] <= 0.6 else 1)
    assert other_span(span, duration, "1") == other_span(span, duration, "1")
    assert other_span((0.2, 0.8), 1.0, "1") == (0.0, pytest.approx(0.6)), "no room: as little of it as can be"
