"""What the data asks for: windows near the clips' length, texts as long as they are, AF-CLAP first."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_af.config import AugmentConfig, Config, FrontEndConfig, ModelConfig, StageConfig
from megatron_af.prepare.advice import advise, fitting_text, fitting_window, table
from megatron_af.prepare.statistics import Statistics

CLAP = StageConfig(objective="contrastive", blend={"a": 1.0}, max_windows=1)
ANSWER = StageConfig(blend={"a": 1.0}, entry={"encoder": "clap"}, max_windows=1, max_text_tokens=40)
SHORT = Statistics(
    name="a", rows=4, looked_at=4, seconds=[0.4, 0.5, 0.5, 0.6], windows=[1] * 4, tokens=[25, 30], captions=4
)


def run(window: float = 1.0, **stages: StageConfig) -> Config:
    model = ModelConfig(front_end=FrontEndConfig(window_seconds=window))
    return Config(name="t", model=model, curriculum=stages or {"clap": CLAP, "answer": ANSWER})


def said(config: Config, statistics: Statistics = SHORT) -> dict[str, tuple[str, str]]:
    return {item.key: (item.now, item.better) for item in advise(statistics, config)}


@pytest.mark.parametrize(
    ("seconds", "window"),
    [([0.5] * 9, 1.0), ([1.2] * 9, 1.5), ([1.53] * 9, 1.5), ([4.0] * 9, 4.0), ([40.0] * 9, 10.0), ([], 10.0),
     ([1.0] * 98 + [30.0] * 2, 1.0)],
)  # fmt: skip
def test_most_clips_fit_into_a_window(seconds: list[float], window: float) -> None:
    assert fitting_window(seconds) == window


def test_settings_that_fit_are_left_alone() -> None:
    assert said(run()) == {} and fitting_text([30]) == 32 and fitting_text([]) == 8


def test_windows_of_padding_and_texts_of_nothing_are_named() -> None:
    config = run(10.0, clap=CLAP, answer=replace(ANSWER, max_windows=3, max_text_tokens=512))
    assert said(config) == {
        "model.front_end.window_seconds": ("10", "1"),
        "curriculum.answer.max_windows": ("3", "1"),
        "curriculum.answer.max_text_tokens": ("512", "32"),
    }
    (window, *_) = advise(SHORT, config)
    assert "95% of a window is padding" in window.why and "clips last 0.5 s" in window.why
    given: Any = {"all": "runs/other/lm/checkpoints/step_00000001"}
    assert "model.front_end.window_seconds" not in said(run(10.0, answer=replace(ANSWER, entry=given)))
    assert len(table(advise(SHORT, config), "a").rows) == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, True),
        ({"steps": 9}, False),
        ({"passes": 19.0}, False),
        ({"passes": 20.0, "steps": 1}, True),
        ({"blend": {"a": 1.0, "b": 1.0}}, False),
        ({"frozen": ("encoder.*",)}, False),
        ({"augment": AugmentConfig()}, False),
    ],
    ids=["20 times", "18 times", "19 passes", "20 passes", "half of them", "frozen", "decided"],
)
def test_few_recordings_heard_many_times_are_worth_an_augmentation(changes: dict[str, Any], named: bool) -> None:
    """Ten steps of 8 samples are 20 passes over 4 rows."""
    stage = replace(CLAP, **({"trainable": ("*",), "steps": 10} | changes))
    found = {item.key: item for item in advise(SHORT, run(clap=stage)) if "augment" in item.key}
    assert bool(found) is named
    if named:
        item = found["curriculum.clap.augment"]
        assert item.better == "{time_seconds: 0.064, mel_bins: 8}" and "hears each recording 20 times" in item.why


def test_clips_that_are_cut_are_named() -> None:
    long = replace(SHORT, seconds=[0.5, 5.0], windows=[1, 5])
    assert said(run(), long) == {
        "curriculum.clap.max_windows": ("1", "5"), "curriculum.answer.max_windows": ("1", "5"),
    }  # fmt: skip
    assert "50.0% of the clips are longer than 1 s, the longest 5 s" in advise(long, run())[0].why


def test_a_fresh_encoder_goes_to_af_clap_first() -> None:
    alone = run(answer=replace(ANSWER, entry={}))
    assert said(alone) == {"curriculum.answer.entry.encoder": ("fresh", "clap")}
    assert "a stage with objective: contrastive" in advise(SHORT, alone)[0].why
    assert said(run(pre=CLAP, answer=replace(ANSWER, entry={}))) == {
        "curriculum.answer.entry.encoder": ("fresh", "pre")
    }
    assert said(alone, replace(SHORT, captions=0)) == {}, "nothing to learn it from"
    elsewhere = run(answer=replace(ANSWER, blend={"b": 1.0}, entry={}))
    assert said(elsewhere) == {}
