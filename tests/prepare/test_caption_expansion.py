"""Caption expansion: what comes back, and what of a reply is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_af.data.rows import Manifest, Row
from megatron_af.prepare.caption_expansion import CaptionExpansion, expand
from megatron_af.prepare.generation import read_reply
from tests.prepare.endpoint import good, good_entry, job


def told(caption: str) -> Row:
    return Row(id="r", captions=(caption,))


def test_rows_come_back_in_order_with_typed_negatives(tmp_path, start, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = start(good)
    config = job(tmp_path, server)
    report = expand(config)
    assert (report.rows, report.written, report.requests, report.refused) == (7, 7, 3, {})
    assert sorted(map(len, server.asked)) == [1, 3, 3]
    assert set(server.keys) == {"Bearer secret"}
    rows = list(Manifest(Path(config.output)))
    assert [row.id for row in rows] == [f"r{i}" for i in range(7)]
    assert rows[3].captions == ("sound 3 then bell", "one hears sound 3 then bell", "there is sound 3 then bell")
    assert rows[3].negatives == ("backwards sound 3 then bell", "quiet sound 3 then bell")
    assert rows[3].meta == {"kept": 3, "negative_kinds": ["order", "attribute"]}
    assert "2 paraphrases and 2 negatives" in server.bodies[0]["messages"][0]["content"]


def test_a_caption_that_was_corrected_is_asked_for_again(tmp_path, start):
    server = start(good)
    config = job(tmp_path, server)
    expand(config)
    source = Path(config.source)
    corrected = source.read_text().replace("sound 3 then", "noise 3 then").replace("a.flac", "b.flac")
    source.write_text(corrected)
    before = len(server.asked)
    expand(config)
    assert server.asked[before:] == [["noise 3 then bell"]]
    rows = list(Manifest(Path(config.output)))
    assert rows[3].captions[1] == "one hears noise 3 then bell"
    assert {row.clips[0].path for row in rows} == {"b.flac"}, "all but the captions is the source's"


def test_unusable_replies_are_asked_again_and_then_refused(tmp_path, start):
    def odd(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        entries = [good_entry(item) for item in items]
        for entry, item in zip(entries, items, strict=True):
            if "sound 1" in item["caption"]:
                entry["negatives"][0]["text"] = item["caption"].upper() + "."
            if "sound 2" in item["caption"] and len(items) > 1:
                entry["paraphrases"] = []  # mends itself when asked again
        return 200, "```json\n" + json.dumps({"captions": entries}) + "\n```", {}

    config = job(tmp_path, start(odd))
    report = expand(config)
    assert report.refused == {"r1": "a negative equals the caption or a paraphrase"}
    assert [row.id for row in Manifest(Path(config.output))] == ["r0", "r2", "r3", "r4", "r5", "r6"]
    assert json.loads(Path(f"{config.output}.refused").read_text())["id"] == "r1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"paraphrases": ["x", "X!"]}, "1 different paraphrases instead of 2"),
        ({"paraphrases": ["x", ""]}, "a text is empty or missing"),
        ({"paraphrases": "x"}, "must be lists"),
        ({"paraphrases": ["x " * 50, "y"]}, "far longer than the caption"),
        ({"negatives": [{"text": "a", "change": "mood"}]}, "none of order, attribute"),
        ({"negatives": [{"text": "a", "change": "order"}, {"text": "A", "change": "order"}]}, "1 different negatives"),
        ({"negatives": ["a"]}, "a text is empty or missing"),
        ({"id": 7}, "leaves this row out"),
    ],
)
def test_each_defect_of_a_reply_has_its_reason(tmp_path, start, change, reason):
    config = job(tmp_path, start(good))
    entry = good_entry({"id": 0, "caption": "a dog"}) | change
    (problem,) = read_reply(CaptionExpansion(config), json.dumps({"captions": [entry]}), [told("a dog")])
    assert isinstance(problem, str)
    assert reason in problem


def test_replies_that_are_no_json_are_unusable(tmp_path, start):
    task = CaptionExpansion(job(tmp_path, start(good)))
    for reply in ("Sure! Here you are", "[]", '{"captions": 3}', '{"captions": [1]}'):
        assert all(isinstance(r, str) for r in read_reply(task, reply, [told("a"), told("b")]))
    (kept,) = read_reply(task, json.dumps({"captions": [good_entry({"id": 0, "caption": "a"})]}), [told("a")])
    assert not isinstance(kept, str) and len(kept["negatives"]) == 2
