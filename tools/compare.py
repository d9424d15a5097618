"""Two measurements side by side, as one HTML page: gains with a paired test, and what flipped, to listen to.

    python tools/compare.py NOW BEFORE [--suite NAME,NAME] [--metric NAME] [--root data] [--output FILE]

NOW and BEFORE are folders of stages (output/name/stage), or of ``tools/evaluate.py --output``, that hold
``suite-NAME.parquet``. Without ``--suite``, all that both have. The page is NOW/compared.html unless said otherwise; it
goes to the MLflow run of NOW, where that is a stage's folder.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from megatron_af.entry import command


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("now", type=Path, metavar="NOW")
    parser.add_argument("before", type=Path, metavar="BEFORE")
    parser.add_argument("--suite", default="", help="benchmarks to compare")
    parser.add_argument("--metric", default="", help="that says which samples flipped; default: the first")
    parser.add_argument("--root", default="data", help="data.root, for the recordings")
    parser.add_argument("--output", type=Path, help="page to write")
    options = parser.parse_args(arguments)
    from megatron_af.data.storage import DataRoot
    from megatron_af.evaluate.comparison import NotComparable, compare, comparison_page, comparison_table, shared_suites
    from megatron_af.files import write
    from megatron_af.tracking.runs import newest_spool

    suites = [s for s in options.suite.split(",") if s] or shared_suites(options.now, options.before)
    if not suites:
        raise NotComparable(f"{options.now} and {options.before} share no suite-NAME.parquet; measure both")
    compared = [compare(options.now, options.before, suite, options.metric) for suite in suites]
    console = Console()
    console.print(*map(comparison_table, compared))
    target: Path = options.output or options.now / "compared.html"
    write(target, comparison_page(compared, DataRoot(options.root)))
    if spool := newest_spool(options.now):
        spool.append("artifact", file=str(target.absolute()), to="evaluation")
    console.print(str(target), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
