"""The page: nothing outside the file, marked labels, captions as a stage reads them."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import soundfile
from rich.console import Console

from megatron_af.config import StageConfig
from megatron_af.data.rows import Clip, Manifest, Row, Span
from megatron_af.prepare.inspection import look, page, panels
from megatron_af.prepare.statistics import measure
from megatron_af.text.tokenizer import Tokenizer
from tests.data.toy import CPU, FRONT_END, toy_config, toy_rows, write_manifest


def test_the_page_shows_hears_and_marks(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    rows = list(Manifest(tmp_path / "data" / "a.jsonl"))
    rows[0] = replace(rows[0], id="<b>odd & id</b>")
    gone = Clip(path="gone.wav", duration=1.0), Clip(path="gone.tar", duration=1.0, length=9)
    rows[-1] = Row(id="gone", clips=gone, questions=rows[0].questions)
    write_manifest(tmp_path / "data", "a", rows)
    samples = look(config, "a", tokenizer=tokenizer, device=CPU, count=3)
    assert [s.row.id for s in samples] == ["<b>odd & id</b>", "a-5", "gone"]
    assert "cannot be opened" in samples[2].clips[0].problem or "decoded" in samples[2].clips[0].problem
    marked = "".join(token for token, supervised, _ in samples[0].segments[0] if supervised)
    assert marked == "answer 0 0<|endofchunk|><|endoftext|>"
    statistics = measure(Manifest(tmp_path / "data" / "a.jsonl"), config, tokenizer, name="a")
    text = page(statistics, samples, FRONT_END)
    assert "&lt;b&gt;odd &amp; id&lt;/b&gt;" in text and "<b>odd" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    sounds = re.findall(r"data:audio/flac;base64,([^\"]+)", text)
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    assert rate == 16_000 and len(wave) == round(rows[0].clips[0].duration * 16_000)
    assert len(re.findall("data:image/png", text)) == 1 + len(sounds)
    assert '<span class="on ">answer 0 0</span>' in text
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(*panels(samples, FRONT_END))
    shown = console.export_text()
    assert "answer 0 0" in shown and "█" in shown and "gone.wav" in shown and "gone.tar" in shown


def test_captions_are_shown_as_a_contrastive_stage_reads_them(tmp_path: Path) -> None:
    toy = toy_config(tmp_path, StageConfig(objective="contrastive"))
    rows = [replace(row, negatives=("no sound",)) for row in toy_rows(tmp_path / "data", "c", 4) if row.clips]
    rows[0] = replace(rows[0], spans=(Span(start=0.0, end=0.5, captions=("a start",)),))
    datasets = {"c": write_manifest(tmp_path / "data", "c", rows)}
    stage = replace(toy.curriculum["tune"], blend={"c": 1.0})
    config = replace(toy, data=replace(toy.data, datasets=datasets), curriculum={"tune": stage})
    (sample,) = look(config, "c", tokenizer=Tokenizer.load(config.data.tokenizer), device=CPU, count=1)
    lines = ["".join(text for text, _, _ in segment) for segment in sample.segments]
    assert lines == ["caption 0", "not: no sound", "0-0.5 s: a start"]
    assert [[text for text, learnt, _ in segment if learnt] for segment in sample.segments] == [
        ["caption 0"], [], ["a start"],
    ]  # fmt: skip
