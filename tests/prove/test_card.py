"""The card says what was compared, of which code and configuration, and what is broken."""

import json
from pathlib import Path

from megatron_af.config import Config
from megatron_af.prove.card import card, markdown
from megatron_af.prove.compare import Agreement
from megatron_af.prove.proof import LAYOUT, Finding, Proof


def of(*findings: Finding) -> dict[str, object]:
    proof = Proof(findings=findings, same={"long": "align"}, silent={"align": ("encoder.x",)}, seconds=3.21)
    return card(Config(name="mine"), proof, 2)


GOOD = Agreement(what="gradients", compared=12, error=1.5e-6, bound=2e-5, worst="lm.gate")
BAD = Agreement(what="weights", compared=12, error=float("inf"), bound=1e-4, worst="lm.fc|1")


def test_a_card_of_what_holds() -> None:
    record = of(Finding(stage="align", layout="TP2", question=LAYOUT, agreements=(GOOD,)))
    assert record["holds"] and str(record["config_digest"]).startswith("sha256:") and record["versions"]
    text = markdown(record)
    assert "# mine: every layout computes what one process computes" in text and "BROKEN" not in text
    assert f"| TP2 | {LAYOUT} | gradients | 12 | 1.5e-06 | 2e-05 | `lm.gate` |" in text
    assert "no gradient here: encoder.x" in text and "long is, at this size, align." in text


def test_a_card_of_what_does_not() -> None:
    ended = Finding(stage="align", layout="PP2", question=LAYOUT, problem="a | b")
    record = json.loads(json.dumps(of(Finding(stage="align", layout="TP2", question=LAYOUT, agreements=(BAD,)), ended)))
    assert not record["holds"] and record["findings"][0]["agreements"][0]["error"] is None
    text = markdown(record)
    assert "# mine: BROKEN" in text and "**weights** | 12 | none or not finite" in text
    assert "**BROKEN** | | | | a / b |" in text


def test_a_digest_is_of_the_configuration(tmp_path: Path) -> None:
    proof = Proof(findings=(), same={}, silent={}, seconds=0.0)
    digests = {card(Config(name="mine", seed=seed), proof, 2)["config_digest"] for seed in (0, 1, 1)}
    assert len(digests) == 2
