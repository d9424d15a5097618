"""What a stage was measured to be able to do, from its folder into its run in MLflow.

    log_evaluation(config, "long", Spool(stage_spool(config, "long", inputs)), parent)     # the stage's own results
    log_few_shot(config, [1, 4], "clotho")      # of config.stage, those behind examples of clotho, into its newest run

Numbers and tables go to the stage's run, totals to the curriculum's, too. Names of those behind examples begin with
``few_shot/4_from_clotho``, and go on as the others'.
"""

from collections.abc import Sequence
from pathlib import Path

from megatron_af.config import Config
from megatron_af.runs.benchmarks import name_of
from megatron_af.runs.paths import read_result
from megatron_af.runs.results import SUITE, SUITE_SAMPLES, Results, few_shot_folder, tables
from megatron_af.tracking.runs import curriculum_spool, newest_spool, send_the_rest
from megatron_af.tracking.spool import Spool, metric_name


def log_evaluation(config: Config, stage: str, spool: Spool, parent: Spool) -> None:
    """
    Args:
        spool: of the stage.
        parent: the curriculum's.
    """
    _log(config, stage, [config.stage_folder(stage)], "", spool, parent)


def log_few_shot(config: Config, shots: Sequence[int], source: str) -> None:
    """Results of ``config.stage`` behind these numbers of examples, and send them: they are measured by hand, when the
    run is over. Where tracking is off, or the stage has no run, they stay where they are."""
    settings, own = config.curriculum[config.stage], config.stage_folder(config.stage)
    spool = newest_spool(own) if config.tracking.enabled and any(shots) else None
    if spool is None:
        return
    for under in (few_shot_folder(count, source) for count in shots if count):
        measured = [own / under] if settings.evaluation else []
        measured += [own / under / name_of(suite) for suite in settings.suites]
        _log(config, config.stage, measured, f"{under}/", spool, Spool(curriculum_spool(config)))
    send_the_rest(config)


def _log(config: Config, stage: str, folders: Sequence[Path], under: str, spool: Spool, parent: Spool) -> None:
    metrics = {f"{under}{name}": value for folder in folders for name, value in Results.load(folder).metrics.items()}
    step = int(read_result(config.stage_folder(stage)).get("step", 0))
    # Not ``metrics``: those are the training's own, by whose last step a resumed stage knows how far it came.
    spool.append("evaluation", step=step, values={metric_name(name): value for name, value in metrics.items()})
    for name, (columns, rows) in [found for folder in folders for found in tables(folder).items()]:
        spool.append("table", name=f"evaluation/{under}{name}.json", columns=columns, data=rows)
    for picture in [file for folder in folders for file in sorted((folder / "pictures").glob("*.png"))]:
        spool.append("artifact", file=str(picture.absolute()), to="pictures")
    for file in [file for folder in folders for file in sorted((*folder.glob(SUITE), *folder.glob(SUITE_SAMPLES)))]:
        spool.append("artifact", file=str(file.absolute()), to=f"evaluation/{under}".rstrip("/"))
    suites = [f"{under}{name_of(suite)}" for suite in config.curriculum[stage].suites]
    headlines = {name for name in metrics for suite in suites if name.rpartition("/")[0] == suite}
    totals = {f"{stage}/{n}": value for n, value in metrics.items() if "/overall/" in n or n in headlines}
    parent.append("evaluation", step=step, values={metric_name(k): v for k, v in totals.items()})
