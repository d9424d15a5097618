"""The comparison of the two losses: its rows, its summary, and runs that are not made again."""

import json
import math
from pathlib import Path

import pytest

from megatron_af.bench.clap_claim import FORMS, claim_row, run_claim, summarise, table
from megatron_af.config import ConfigError, ContrastiveConfig
from megatron_af.config.loading import load_config
from megatron_af.data.rows import Clip, Row
from megatron_af.progress import silent

EVENTS = [
    {"kind": "bell", "start": 0.0, "end": 1.0, "loud": True, "long": False},
    {"kind": "dog", "start": 2.0, "end": 3.0, "loud": False, "long": True},
]


def test_rows_have_typed_negatives_and_tested_ones_only_plain_captions():
    row = Row(id="s", clips=(Clip(path="a", duration=10.0),), captions=("old",), meta={"events": EVENTS})
    tested = claim_row(row, 0, tested=True)
    assert tested is not None
    assert tested.captions[0] == "loud short bell then quiet long dog"
    assert len(tested.captions) == 4
    assert sorted(set(tested.meta["negative_kinds"])) == ["attribute", "order"]
    assert all(" then " in text for text in tested.negatives)
    assert not set(tested.captions) & set(tested.negatives)
    alone = Row(id="t", captions=("x",), meta={"events": EVENTS[:1]})
    assert claim_row(alone, 0, tested=True) is None  # nothing to exchange it with
    trained = claim_row(alone, 0, tested=False)
    assert trained is not None and set(trained.meta["negative_kinds"]) == {"attribute"}
    assert [span.captions for span in trained.spans] == [("bell",), ("only bell",)]


def test_both_losses_hear_of_the_single_events_in_training_alone():
    row = Row(id="s", clips=(Clip(path="a", duration=10.0),), captions=("old",), meta={"events": EVENTS})
    trained, tested = claim_row(row, 0, tested=False), claim_row(row, 0, tested=True)
    assert trained is not None and tested is not None
    said = [(span.start, span.captions[0], span.negatives) for span in trained.spans]
    assert said == [(0.0, "bell", ()), (0.0, "first bell", ()), (2.0, "dog", ()), (2.0, "finally dog", ())]
    assert tested.spans == ()


def report(composition: float) -> dict:
    return {
        "rows": 9,
        "composition": {"all": composition, "order": 50.0, "attribute": 40.0},
        "retrieval": {"text_to_audio_r1": 1.0, "text_to_audio_r10": 10.0},
        "composition, other audio": {"all": 20.0},
        "paraphrase": {"paraphrased_r1": 1.0, "kept_r1": 90.0, "paraphrased_r10": 9.0, "kept_r10": 90.0},
    }


def test_summary_pairs_seeds_and_gives_the_interval_of_the_gain():
    values = {"sum": (40.0, 42.0, 44.0), "each": (20.0, 21.0, 22.0), "plain": (20.0, 21.0, 22.0)}
    found = {form: [report(x) for x in some] for form, some in values.items()}
    result = summarise(found) | {"steps": 5, "batch": 4}
    measure = result["measures"]["composition"]
    assert measure["sum"]["gain"] == pytest.approx(21.0) and measure["each"]["gain"] == 0.0
    half = 4.303 * 1.0 / math.sqrt(3)  # gains 20, 21, 22
    assert measure["sum"]["interval"] == pytest.approx([21.0 - half, 21.0 + half])
    assert measure["plain"] == {"mean": 21.0, "seeds": [20.0, 21.0, 22.0]}
    assert result["measures"]["order"]["each"]["interval"] == [0.0, 0.0]
    assert table(result).row_count == 10
    single = summarise({form: reports[:1] for form, reports in found.items()})
    assert math.isnan(single["measures"]["composition"]["sum"]["interval"][0])


def test_each_form_is_what_its_name_says() -> None:
    found = {}
    for form, keys in FORMS.items():
        changes = [f"curriculum.clap.contrastive.{key}={value}" for key, value in keys.items()]
        found[form] = load_config("configs/clap_claim.yaml", changes).curriculum["clap"].contrastive
    assert found["sum"] == ContrastiveConfig(), "the paper's"
    assert found["sum-symmetric"] == load_config("configs/af2_3b.yaml").curriculum["clap"].contrastive
    assert found["each-symmetric"] == ContrastiveConfig(positives="each", symmetric=True)
    assert [found[form].positives for form in ("each", "one")] == ["each", "one"] and found["plain"].loss == "clip"


def test_a_finished_run_is_not_made_again(tmp_path: Path):
    from megatron_af.bench.clap_claim import TEST, _measured

    result = tmp_path / f"plain_1/{TEST}/clap-{TEST}.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps(report(3.0)))
    config = load_config("configs/clap_claim.yaml")
    assert _measured(config, tmp_path, "plain", 1)["composition"]["all"] == 3.0


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path):
    folder = tmp_path / "clap_claim"
    folder.mkdir()
    (folder / "config.yaml").write_text("curriculum: {clap: {steps: 7}}")
    with pytest.raises(ConfigError, match="holds runs of other settings"):
        run_claim("configs/clap_claim.yaml", [f"output={tmp_path}"], progress=silent())
    assert (folder / "config.yaml").read_text() == "curriculum: {clap: {steps: 7}}"
