"""The verification card of a proof: what equals what, within which bound, of which configuration and code.

    record = card(config, proof, ranks=2)       # JSON
    text = markdown(record)
"""

import math
import platform
from typing import Any

from megatron_af.config import Config
from megatron_af.config.loading import to_yaml
from megatron_af.prove.proof import Finding, Proof
from megatron_af.runs.code import code_version, installed, source_revision
from megatron_af.runs.digests import digest_value

PACKAGES = ("torch", "megatron-core", "nvidia-dali-cuda130", "numpy")
"""Whose versions decide numbers."""


def card(config: Config, proof: Proof, ranks: int) -> dict[str, Any]:
    """What a proof found, as JSON; an error that is infinite (something is missing, or not finite) is null."""
    return {
        "name": config.name,
        "holds": proof.holds,
        "code": code_version(),
        "commit": source_revision()[0],
        "config_digest": digest_value(to_yaml(config)),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "ranks": ranks,
        "seconds": round(proof.seconds, 1),
        "same": proof.same,
        "silent": {stage: list(names) for stage, names in proof.silent.items()},
        "findings": [_finding(finding) for finding in proof.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "stage": finding.stage,
        "layout": finding.layout,
        "question": finding.question,
        "holds": finding.holds,
        "problem": finding.problem,
        "agreements": [
            {
                "what": one.what,
                "compared": one.compared,
                "error": one.error if math.isfinite(one.error) else None,
                "bound": one.bound,
                "worst": one.worst,
                "holds": one.holds,
            }
            for one in finding.agreements
        ],
    }


def markdown(record: dict[str, Any]) -> str:
    """The card for people."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    lines = [
        f"# {record['name']}: {'every layout computes what one process computes' if record['holds'] else 'BROKEN'}",
        "",
        f"Megatron-AF {record['code']}, configuration {record['config_digest']}; {versions}. Shrunk to seconds, in "
        f"float32 over gloo, on up to {record['ranks']} processes; {record['seconds']} s. Errors are relative to the "
        "largest value of each tensor.",
    ]
    for stage in dict.fromkeys(finding["stage"] for finding in record["findings"]):
        lines += ["", f"## {stage}", "", "| layout | | what | compared | worst error | bound | where |"]
        lines += ["| --- | --- | --- | ---: | ---: | ---: | --- |"]
        for finding in record["findings"]:
            if finding["stage"] == stage:
                lines += _rows(finding)
        if silent := record["silent"].get(stage):
            lines += ["", f"Nothing is said about what has no gradient here: {', '.join(silent)}."]
    lines += [""] if record["same"] else []
    lines += [f"{stage} is, at this size, {twin}." for stage, twin in record["same"].items()]
    return "\n".join(lines) + "\n"


def _rows(finding: dict[str, Any]) -> list[str]:
    begin = f"| {finding['layout']} | {finding['question']} |"
    if finding["problem"]:
        return [f"{begin} **BROKEN** | | | | {finding['problem'].replace('|', '/')} |"]
    rows = []
    for one in finding["agreements"]:
        error = "none or not finite" if one["error"] is None else f"{one['error']:.1e}" if one["error"] else "0"
        what = one["what"] if one["holds"] else f"**{one['what']}**"
        rows.append(
            f"{begin} {what} | {one['compared']} | {error} | {one['bound']:.0e} | "
            f"{f'`{one["worst"]}`' if one['error'] != 0 else ''} |"
        )
    return rows
