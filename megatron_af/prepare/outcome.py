"""What came of importing and preparing data sets, told to people: counts, reasons, and where each bad row is named.

    with Progress() as progress:
        status = import_rows(config, ["clotho"], progress)      # tools/prepare_data.py import
"""

from megatron_af.config import Config
from megatron_af.prepare.importers import import_dataset
from megatron_af.prepare.parts import write_part
from megatron_af.prepare.sharding import prepare
from megatron_af.progress import Progress


def import_rows(config: Config, names: list[str], progress: Progress) -> int:
    """Data sets with an origin, then those that are parts of others. Returns the exit status: 1 when more rows are left
    out than ``data.prepare.max_bad_fraction``, 2 (no other try would help) when there is none."""
    status = 0
    parts = [name for name in names if config.data.datasets[name].part]
    for name in names:
        if name in parts:
            continue
        report = import_dataset(config, name, progress)
        total = report.rows + sum(report.left_out.values())
        other = f"{report.passed_over:,} other files passed over"
        progress.say(f"{name}: {report.rows:,} of {total:,} rows imported, {other}")
        if report.without_recording:
            progress.say(f"  without a recording, of text alone: {report.without_recording:,}")
        if report.renamed:
            progress.say(f"  renamed, for the id was another row's (now ID~2) or empty: {report.renamed:,}")
        for kind, (count, first) in report.notes.items():
            progress.say(f"  note, {kind}: {count:,}, such as {first if len(first) <= 160 else f'{first[:157]}...'}")
        others = report.passed_over + len(report.notes)
        failed = _left_out(progress, config, name, report.left_out, report.report, report.bad_fraction, others)
        status = max(status, failed if total else _no_rows(progress, name))
    for name in parts:
        kept, rows = write_part(config, name)
        progress.say(f"{name}: {kept:,} of {rows:,} rows, by recording")
    return status


def prepare_recordings(config: Config, names: list[str], progress: Progress) -> int:
    """Returns the exit status: 1 when more rows are bad than ``data.prepare.max_bad_fraction``, 2 if there are none."""
    status = 0
    for name in names:
        summary = prepare(config, name, progress)
        progress.say(
            f"{name}: {summary.kept:,} of {summary.rows:,} rows prepared, {summary.seconds / 3600:,.2f} hours of audio"
            f", {summary.rows - summary.kept:,} left out, {summary.notes:,} notes"
        )
        for kind, count in summary.noted.items():
            progress.say(f"  note, {kind}: {count:,}")
        others = len(summary.noted)
        failed = _left_out(progress, config, name, summary.reasons, summary.report, summary.bad_fraction, others)
        status = max(status, failed if summary.rows else _no_rows(progress, name))
    return status


def _no_rows(progress: Progress, name: str) -> int:
    progress.say(f"{name}: failed, it has no rows")
    return 2


def _left_out(
    progress: Progress, config: Config, name: str, reasons: dict[str, int], report: str, fraction: float, others: int
) -> int:
    """Tells why rows are out, and where each stands beside other things that were listed; 1 where too many are out."""
    for reason, count in reasons.items():
        progress.say(f"  {reason}: {count:,}")
    if reasons or others:
        progress.say(f"  each of them: {config.data.root}/{report}")
    allowed = config.data.prepare.max_bad_fraction
    if fraction <= allowed:
        return 0
    progress.say(f"{name}: failed, {fraction:.1%} left out; data.prepare.max_bad_fraction is {allowed:.1%}")
    return 1
