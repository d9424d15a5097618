"""From any folder of audio to shards that train: import rows, prepare recordings, look at the result.

    python tools/prepare_data.py import  --config FILE [--dataset NAME] [key=value ...]
    python tools/prepare_data.py prepare --config FILE [--dataset NAME] [key=value ...]
    python tools/prepare_data.py stats   --config FILE [--dataset NAME] [--html FILE] [key=value ...]
    python tools/prepare_data.py inspect --config FILE --dataset NAME [--samples N] [--html FILE] [key=value ...]
    python tools/prepare_data.py lint|padding --config FILE [key=value ...]

``import`` reads ``data.datasets.NAME.origin`` (somebody's manifest, table, label folder, tars) and writes its rows to
``source``; data sets that are a ``part`` of another take theirs from there. ``prepare`` checks, resamples and packs the
recordings of ``source`` into ``manifest`` and goes on where an interrupted run stopped. Without ``--dataset`` both do
all data sets that have the keys. ``lint`` warns where ``merits`` do not want a data set, ``padding`` counts padding.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from megatron_af.config import Config
from megatron_af.config.loading import load_config
from megatron_af.entry import command, importing
from megatron_af.files import write
from megatron_af.progress import Progress


def show(config: Config, names: list[str], samples: int = 0, html: str = "") -> int:
    """Statistics, and with ``samples`` rows to look at; ``html`` gets a page with pictures and sound."""
    with importing():
        from megatron_af.data.shards import open_rows
        from megatron_af.data.storage import DataRoot
        from megatron_af.parallel.device import current_device
        from megatron_af.prepare import advice
        from megatron_af.prepare.inspection import look, page, panels
        from megatron_af.prepare.statistics import measure, tables
        from megatron_af.text.tokenizer import Tokenizer

    console, tokenizer, root = Console(), Tokenizer.load(config.data.tokenizer), DataRoot(config.data.root)
    for name in names:
        statistics = measure(open_rows(root, config.data.datasets[name].manifest), config, tokenizer, name=name)
        console.print(*tables(statistics))
        if found := advice.advise(statistics, config):
            console.print(advice.table(found, name))
        seen = look(config, name, tokenizer=tokenizer, device=current_device(), count=samples) if samples else []
        console.print(*panels(seen, config.model.front_end))
        if html:
            write(Path(html), page(statistics, seen, config.model.front_end))
            print(f"{name}: {html}")
    return 0


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["import", "prepare", "stats", "inspect", "lint", "padding"])
    parser.add_argument("--config", required=True)
    parser.add_argument("--dataset", default="", help="a name in data.datasets; default: all that apply")
    parser.add_argument("--samples", type=int, default=4, help="rows that inspect shows")
    parser.add_argument("--html", default="", help="page to write; inspect's default: NAME.html")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    if options.command == "lint":
        from megatron_af.prepare.stage_fit import lint

        print(*lint(config), sep="\n")
        return 0
    if options.command == "padding":
        from megatron_af.prepare.padding import padding_tables

        Console().print(*padding_tables(config))
        return 0
    sets = config.data.datasets
    if options.dataset and options.dataset not in sets:
        raise ValueError(f"--dataset {options.dataset}: data.datasets has {', '.join(sets) or 'none'}")
    keys = {"import": ("origin", "part"), "prepare": ("source",)}.get(options.command, ("manifest",))
    named = [name for name, d in sets.items() if any(getattr(d, key) for key in keys) and not d.neighbours]
    if options.command == "prepare":  # what others take their rows from is no data of its own
        named = [name for name in named if not sets[name].manifest.endswith(".jsonl")]
    names = [options.dataset] if options.dataset else named
    if not names:
        print(f"nothing to {options.command}: no data set of {options.config} has {' or '.join(keys)}")
        return 0
    if options.command in ("import", "prepare"):
        from megatron_af.prepare.outcome import import_rows, prepare_recordings

        make = import_rows if options.command == "import" else prepare_recordings
        with Progress() as progress:
            return make(config, names, progress)
    if options.html and len(names) > 1:
        raise ValueError(f"--html is the page of one data set; choose by --dataset {' or '.join(names)}")
    if options.command == "stats":
        return show(config, names, html=options.html)
    return show(config, names[:1], options.samples, options.html or f"{names[0]}.html")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
