"""The numbers of a benchmark: each metric with its interval, by skill and by wording, and how far from published ones.

    report = report_of(benchmark, answered, measured)
    print(suite_table(report, "demo, stage long, esc50"))

    {"n": 2000, "too_long": 0, "exact": 71.2, "intervals": {"exact": [69.1, 73.0]}, "unparseable": {"match": 12},
     "skills": {"rain": {"exact": 80.0}}, "wordings": {"exact": [71.2, 70.5, 66.0]}, "skipped": {"fense": "needs …"},
     "published": [{"model": "AF2 3B", "metric": "nearest", "value": 83.9, "source": "…", "distance": -12.7}]}
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

from rich.table import Table

from megatron_af.evaluate.answered import Answered
from megatron_af.evaluate.intervals import interval
from megatron_af.evaluate.metrics.base import Scores
from megatron_af.runs.benchmarks import Benchmark

CONTRASTIVE = ("retrieval", "all captions", "zero_shot", "paraphrase", "composition")
"""Tests of a contrastive stage."""
PROBED = {
    "exchanged": "about another recording",
    "silent": "about silence",
    "shifted": "with the second half first",
    "options": "with options in other places",
    "cited": "without the span that attention names",
    "uncited": "without another such span",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of the metrics of a benchmark."""

    scores: Mapping[str, Scores]
    wordings: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Number of a metric for each wording."""
    probes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Probe -> metric's number -> what it was with the probe's answers."""
    probed: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)
    """The same of each answer, where the metric tells right from wrong."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Metric that could not be measured -> why."""

    def __or__(self, other: "Measured") -> "Measured":
        return Measured(
            scores={**self.scores, **other.scores},
            wordings={**self.wordings, **other.wordings},
            probes=_both(self.probes, other.probes),
            probed=_both(self.probed, other.probed),
            skipped={**self.skipped, **other.skipped},
        )

    @property
    def each(self) -> dict[str, Sequence[float | None]]:
        """What each answer was worth, as `write_answered` keeps it."""
        return {
            name: [nan if one is None and not score.unparseable_counts else one for one in score.each]
            for name, score in self.scores.items()
            if score.each
        }


def _both[Value](
    one: Mapping[str, Mapping[str, Value]], other: Mapping[str, Mapping[str, Value]]
) -> dict[str, dict[str, Value]]:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in {**one, **other}}


def flips(
    before: Sequence[float | None], after: Sequence[float | None], groups: Sequence[str]
) -> dict[str, Any]:
    """How many percent of right answers (1) a probe turned wrong, with its interval; nothing where none was right."""
    right = [i for i, worth in enumerate(before) if worth == 1.0]
    if not right:
        return {}
    turned = [float(after[i] != 1.0) for i in right]
    low, high = interval(turned, [groups[i] for i in right])
    rate = sum(turned) / len(turned)
    return {"n": len(right), "rate": round(100 * rate, 4), "interval": [round(100 * low, 4), round(100 * high, 4)]}


def report_of(answered: Sequence[Answered], measured: Measured) -> dict[str, Any]:
    if not answered:
        return {"n": 0}
    groups = [one.group for one in answered]
    report: dict[str, Any] = {
        "n": len(answered),
        "too_long": sum(one.answers[0] is None for one in answered),
        **{name: round(score.value, 4) for name, score in measured.scores.items()},
    }
    intervals, unparseable, skills = {}, {}, defaultdict[str, dict[str, float]](dict)
    of_skill: dict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(answered):
        of_skill[one.skill].append(number)
    for name, score in measured.scores.items():
        if score.interval:
            intervals[name] = [round(bound, 4) for bound in score.interval]
        if not score.each:
            continue
        each = {i: one or 0.0 for i, one in enumerate(score.each) if one is not None or score.unparseable_counts}
        mean = sum(each.values()) / max(1, len(each))
        scale = score.value / mean if mean else 0.0  # percent of right answers, or the metric's own unit
        low, high = interval([*each.values()], [groups[i] for i in each])
        intervals[name] = [round(scale * low, 4), round(scale * high, 4)]
        unparseable[name] = sum(value is None for value in score.each)
        for skill, numbers in of_skill.items() if len(of_skill) > 1 else ():
            if own := [each[i] for i in numbers if i in each]:
                skills[skill][name] = round(scale * sum(own) / len(own), 4)
    for skill, found in skills.items():
        found["n"] = len(of_skill[skill])
    report |= {"intervals": intervals, "unparseable": unparseable}
    report |= {"skills": dict(sorted(skills.items()))} if skills else {}
    report |= {"wordings": {n: [round(v, 4) for v in some] for n, some in measured.wordings.items()}}
    if measured.probes:
        report["probes"] = {probe: {n: round(v, 4) for n, v in some.items()} for probe, some in measured.probes.items()}
    turned = {
        probe: {n: told for n, each in some.items() if (told := flips(measured.scores[n].each, each, groups))}
        for probe, some in measured.probed.items()
    }
    if any(turned.values()):
        report["flips"] = turned
    notes = {name: score.notes for name, score in measured.scores.items() if score.notes}
    return report | {"skipped": dict(measured.skipped)} | ({"notes": notes} if notes else {})


def with_published(report: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """The report with what others reached, and how far this is from it."""
    published = []
    for other in benchmark.published:
        own: Any = report
        for part in other.metric.split("/"):
            own = own.get(part) if isinstance(own, dict) else None
        line: dict[str, Any] = {"model": other.model, "metric": other.metric}
        line |= {"value": other.value, "source": other.source}
        published.append(line | ({} if own is None else {"distance": round(own - other.value, 4)}))
    return report | {"published": published}


def suite_table(report: Mapping[str, Any], title: str = "") -> Table:
    """A line per metric; below, what the words of the prompt change, what was skipped, and what others reached."""
    grid = Table(title=title, title_justify="left")
    for name in ("metric", "", "95%", "unparseable", "other wordings"):
        grid.add_column(name, justify="left" if name == "metric" else "right")
    bounds = {name: f"{low:.4g} to {high:.4g}" for name, (low, high) in report.get("intervals", {}).items()}
    for name in (name for name in bounds if name in report):
        others = ", ".join(f"{value:.4g}" for value in report["wordings"].get(name, [])[1:])
        grid.add_row(name, f"{report[name]:.4g}", bounds[name], str(report["unparseable"].get(name, "")), others)
    inside = [n for n, v in report.items() if isinstance(v, float) and n not in bounds]
    for name in inside:
        grid.add_row(name, f"{report[name]:.4g}")
    for test, values in report.items():  # of a contrastive stage
        if isinstance(values, dict) and test in CONTRASTIVE:
            for name, value in values.items():
                grid.add_row(f"{test}/{name}", f"{value:.4g}", bounds.get(f"{test}/{name}", ""))
    for skill, values in report.get("skills", {}).items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "n")
        grid.add_row(f"  {skill or '(no skill)'}", shown, "", "", str(values["n"]))
    lines = [f"{report.get('n', report.get('rows', 0)):,} questions"]
    lines += [f"{what}: {count:,}" for what, count in {**report.get("left_out", {}), **report.get("odd", {})}.items()]
    lines += [f"too long to be asked: {report['too_long']:,}"] if report.get("too_long") else []
    for probe, values in report.get("probes", {}).items():
        changes = ", ".join(f"{name} {value:.4g} ({value - report[name]:+.4g})" for name, value in values.items())
        lines.append(f"{PROBED[probe]}: {changes}")
        for name, told in report.get("flips", {}).get(probe, {}).items():
            low, high = told["interval"]
            lines.append(f"  turns {told['rate']:.4g}% ({low:.4g} to {high:.4g}) of {told['n']:,} right by {name}")
    lines += [f"{name} skipped: {why}" for name, why in report.get("skipped", {}).items()]
    for other in report.get("published", []):
        distance = f", here {other['distance']:+.4g}" if "distance" in other else ""
        lines.append(f"{other['model']} {other['metric']} {other['value']:g}{distance} ({other['source']})")
    grid.caption = "\n".join(lines)
    grid.caption_justify = "left"
    return grid
