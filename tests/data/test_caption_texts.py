"""What is said of a clip in a contrastive stage follows from the sample's place in the stream, not from a rank."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, ContrastiveConfig, StageConfig
from megatron_af.data.caption_texts import CaptionTexts
from megatron_af.data.rows import Clip, Row, RowError, Span
from megatron_af.data.sampler import Draw
from tests.data.toy import open_stream, toy_config, toy_rows, write_manifest, write_tone

CAPTIONS = tuple(f"said in way {n}" for n in range(8))
STEPS = range(6)


def plain(folder: Path) -> Config:
    """A stage with the plain loss, whose rows have eight captions and a span of four."""
    stage = StageConfig(objective="contrastive", contrastive=ContrastiveConfig(loss="clip"), global_batch_samples=4)
    toy = toy_config(folder, stage)
    root = Path(toy.data.root)
    span = Span(start=0.0, end=0.5, captions=CAPTIONS[:4])
    rows = [replace(r, captions=CAPTIONS, spans=(span,)) for r in toy_rows(root, "c", 16) if len(r.clips) == 1]
    datasets = {"c": write_manifest(root, "c", rows)}
    stage = replace(toy.curriculum["tune"], blend={"c": 1.0})
    return replace(toy, data=replace(toy.data, datasets=datasets), curriculum={"tune": stage})


def said(config: Config, dp: tuple[int, int], mp: tuple[int, int], start: int = 0) -> dict[int, list[tuple[str, ...]]]:
    """By step: (sample, its caption, its span's caption), in the order of the batch."""
    stream = open_stream(config, dp=dp, mp=mp, start=start)
    found = {}
    for step in STEPS[start:]:
        batch = stream.batch(step)
        both = zip(batch.text.captions[::2], batch.text.captions[1::2], strict=True)
        found[step] = [
            (sample, *whole.positives, *span.positives)
            for sample, (whole, span) in zip(batch.sample_ids, both, strict=True)
        ]
    stream.close()
    return found


def test_every_layout_and_a_resume_hear_the_same_captions(tmp_path: Path) -> None:
    config = plain(tmp_path)
    alone = said(config, (0, 1), (0, 1))
    halves = [said(config, (rank, 2), (0, 1)) for rank in range(2)]
    assert {step: halves[0][step] + halves[1][step] for step in STEPS} == alone
    assert [said(config, (0, 1), (rank, 2)) for rank in range(2)] == [alone, alone]
    assert said(config, (0, 1), (0, 1), start=3) == {step: alone[step] for step in STEPS[3:]}
    everything = [line for lines in alone.values() for line in lines]
    assert {len(line) for line in everything} == {3}, "one caption stands alone"
    assert len({caption for _, caption, _ in everything}) > 4
    both = {(CAPTIONS.index(whole) % 4, CAPTIONS.index(span)) for _, whole, span in everything}
    assert len({(a - b) % 4 for a, b in both}) > 2, "a span's caption follows its clip's"


def test_the_paper_loss_takes_all_captions(tmp_path: Path) -> None:
    config = plain(tmp_path)
    stage = replace(config.curriculum["tune"], contrastive=ContrastiveConfig())
    stream = open_stream(replace(config, curriculum={"tune": stage}))
    captions = stream.batch(0).text.captions
    stream.close()
    assert [c.positives for c in captions[:2]] == [CAPTIONS, CAPTIONS[:4]]
    assert [(c.start, c.end) for c in captions[:2]] == [(0.0, float("inf")), (0.0, 0.5)]


@pytest.mark.parametrize("random", [0, 5, 2**64 - 1])
def test_a_draw_decides_which_caption_stands_alone(random: int) -> None:
    row = Row(id="x", clips=(Clip(path="x.wav", duration=1.0),), captions=CAPTIONS)
    draw = Draw(index=0, dataset="c", row=0, dataset_pass=0, random=random)
    _, (first,) = CaptionTexts(one_positive=True).of(row, draw)
    _, (again,) = CaptionTexts(one_positive=True).of(row, draw)
    assert first == again and first.positives[0] in CAPTIONS


def test_spans_behind_what_a_stage_hears_are_not_said_of_its_end(tmp_path: Path) -> None:
    config = plain(tmp_path)
    root = Path(config.data.root)
    write_tone(root / "long.wav", 6.0, seed=1)
    times = ((0.5, 1.5), (1.5, 5.0), (2.0, 2.5), (5.0, 5.5))
    spans = tuple(Span(start=a, end=b, captions=(f"{a} to {b}",)) for a, b in times)
    clip = Clip(path="long.wav", duration=6.0)
    rows = [Row(id=f"{n}", clips=(clip,), spans=spans) for n in range(4)]
    datasets = {"c": write_manifest(root, "c", rows)}
    stage = replace(config.curriculum["tune"], max_windows=2)  # of a second each
    stream = open_stream(
        replace(config, data=replace(config.data, datasets=datasets), curriculum={"tune": stage})
    )
    said = [captions.positives for captions in stream.batch(0).text.captions]
    stream.close()
    assert said == [("0.5 to 1.5",), ("1.5 to 5.0",)] * 4


def test_a_row_that_says_nothing_of_what_is_heard_is_refused() -> None:
    span = Span(start=40.0, end=41.0, captions=("rain",))
    row = Row(id="x", clips=(Clip(path="x.wav", duration=60.0),), spans=(span,))
    draw = Draw(index=0, dataset="c", row=0, dataset_pass=0)
    assert CaptionTexts().of(row, draw)[1]
    with pytest.raises(RowError, match=r"row x: all its spans begin behind the 30 s that the stage hears of its clip"):
        CaptionTexts(heard_seconds=30.0).of(row, draw)
    prepared = replace(row, clips=(Clip(path="x.tar", duration=35.0),))  # cut to what the longest stage hears
    with pytest.raises(RowError, match=r"behind the 35 s"):
        CaptionTexts().of(prepared, draw)
