"""The report: whole, in one file, read by a real browser on a wide and a narrow screen, in light and dark."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config
from megatron_af.config.loading import to_yaml
from megatron_af.report import run as report
from megatron_af.report.run import RECORDINGS, sampled, write_report
from megatron_af.runs.paths import SETTINGS
from megatron_af.tracking.runs import curriculum_spool
from megatron_af.tracking.spool import Address, Spool, read_spool
from tests.browser import EXECUTABLE, Browser


def test_everything_of_a_run_is_on_the_page_and_nothing_outside_it(run: Config) -> None:
    folder = Path(run.output) / run.name
    file = write_report(folder)
    text = file.read_text()
    assert file == folder / "report.html"
    heads = re.findall(r"<h2>([^<]+)</h2>", text)
    assert heads == [
        "Learning", "Gates", "Answers of long on test", "Benchmarks", "Sound and words in one space",
        "Where answers look: test", "Listen: test", "What sounds alike: train", "Where the time goes",
    ]  # fmt: skip
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?://""", text), "the page asks a network"
    assert "&lt;odd&gt; &amp; run" in text and "<odd>" not in text
    assert "&lt;/script&gt;&lt;b&gt;" in text and text.count("</script>") == 1
    assert text.count("<polyline") == 2 * (2 + 2) and "align: tanh of the cross-attention gates" in text
    assert "zero shot: accuracy<td>61.2%" in text
    assert "long on esc50, 2,000 questions" in text
    assert "<td>exact<td>71.2<td>69.1 to 73.0<td>&lt;AF2&gt; 83.9" in text
    assert "long on us8k, 7 questions" in text and "<td>zero_shot/accuracy<td>50.5<td>40.0 to 60.0" in text
    assert "3 min 00 s" in text and "12.5% of the machine's peak (MFU)".replace("12.5%", "12.5 %") in text
    assert text.count("<audio") == 1 + 12 + 4 * 5


def test_a_run_that_kept_little_has_a_report(run: Config) -> None:
    folder = Path(run.output) / run.name
    for file in [*folder.rglob("spool.jsonl"), *folder.rglob("hearing.json"), *folder.rglob("answers.jsonl")]:
        file.unlink()
    (Path(run.data.root) / "test.jsonl").unlink()
    text = write_report(folder, folder / "other.html").read_text()
    assert "The steps of this run were not kept." in text and "<h2>Listen" not in text
    assert not (folder / "report.html").exists()


def test_rows_that_are_gone_are_said(run: Config) -> None:
    (Path(run.data.root) / "test.jsonl").unlink()
    text = write_report(Path(run.output) / run.name).read_text()
    assert text.count("The row is gone.") == 12 and "Where answers look" not in text


def test_half_of_what_is_shown_is_wrong_where_it_can_be() -> None:
    def rows(wrong: int, right: int) -> dict[str, list[dict[str, int]]]:
        return {f"r{i}": [{"right": 1}, {"right": int(i >= wrong)}] for i in range(wrong + right)}

    def shown(wrong: int, right: int) -> tuple[int, int]:
        chosen = sampled(rows(wrong, right))
        assert len(set(chosen)) == len(chosen)
        bad = sum(int(name[1:]) < wrong for name in chosen)
        return bad, len(chosen) - bad

    half = RECORDINGS // 2
    assert shown(100, 100) == (half, half) and shown(3, 100) == (3, RECORDINGS - 3)
    assert shown(100, 2) == (RECORDINGS - 2, 2) and shown(2, 1) == (2, 1)
    assert sampled(rows(50, 50)) == sampled(rows(50, 50))


def test_a_run_that_is_followed_sends_its_report(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sent = Path(run.output) / run.name, []
    monkeypatch.setattr(report, "send_the_rest", lambda config: sent.append(config.name))
    Spool(curriculum_spool(run)).open(
        Address(uri="sqlite:///x.db", experiment="x", name="x"), params={}, tags={}, texts={}
    )
    write_report(folder)
    assert sent == []
    for stage in run.curriculum:
        settings = next(run.stage_folder(stage).glob("checkpoints/step_*")) / SETTINGS
        settings.write_text(to_yaml(replace(run, stage=stage, tracking=replace(run.tracking, enabled=True))))
    file = write_report(folder)
    (told,) = [record for record, _ in read_spool(curriculum_spool(run)) if record["kind"] == "artifact"]
    assert (told["file"], told["to"], sent) == (str(file), "report", [run.name])


@pytest.mark.slow
@pytest.mark.skipif(not EXECUTABLE, reason="no Chromium to look at the report with (Debian: apt install chromium)")
def test_a_browser_shows_plays_and_filters(run: Config, tmp_path: Path) -> None:
    file = write_report(Path(run.output) / run.name).rename(tmp_path / "report.html")
    with Browser(tmp_path / "profile") as browser:
        colors = {}
        for scheme, width in (("light", 1100), ("dark", 390)):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", features=media)
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.call("Emulation.setDeviceMetricsOverride", **size)
            browser.open(file.as_uri())
            browser.wait_for("document.readyState == 'complete' && document.querySelector('audio').duration > 0.4")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, "one scrolls down alone"
            colors[scheme] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            asked = browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
            assert [name for name in asked if not name.startswith("data:")] == []
        assert colors == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}
        first = "document.querySelector('.heard').previousElementSibling"
        browser.evaluate(f"{first}.currentTime = 0.25, 0")
        browser.wait_for("parseFloat(document.querySelector('.now').style.left) == 25")
        shown = "[...document.querySelectorAll('.qa')].filter(e => e.offsetHeight).length"
        before = browser.evaluate(shown)
        browser.evaluate("document.querySelector('.filter input[value=right]').click()")
        answers = (run.stage_folder("long") / "answers.jsonl").read_text().splitlines()
        wrong = sum(not json.loads(line)["right"] for line in answers)
        assert (before, browser.evaluate(shown)) == (12, wrong) and 0 < wrong < 12
        assert browser.errors == []
