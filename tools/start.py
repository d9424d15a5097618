"""From a folder of recordings to a trained and measured model: finds its layout, writes a YAML, does the rest.

    python tools/start.py FOLDER [--from RUN] [--dry-run] [key=value ...]

FOLDER holds a folder for each label, or a table of captions, labels or questions, or recordings with a text beside each
or a file of lines, or names that begin with their label. It is only read. The YAML, with a comment at each number that
follows from the data, is written to data/NAME/NAME.yaml, NAME being the folder's; what is there already is taken as it
is, so change it and run the same command again. Held-out recordings are measured at the end. ``--dry-run`` shows what
was understood, the YAML and how long each stage takes, and writes nothing. ``--from`` a run (``runs/demo``), a stage, a
checkpoint or a release begins with what was trained there, as far as it fits, and says what and why not the rest.
docs/your_own_sound.md says more.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.entry import command


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings and what says what they are")
    parser.add_argument("--dry-run", action="store_true", help="say what was understood and would be done, and end")
    parser.add_argument("--from", dest="origin", type=Path, help="run or release to begin with")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys of the YAML")
    options = parser.parse_intermixed_args(arguments)
    from megatron_af.start.run import start

    start(options.folder, options.overrides, dry_run=options.dry_run, origin=options.origin)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
