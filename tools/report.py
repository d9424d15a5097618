"""One HTML page about a run, to look at and to listen to.

    python tools/report.py runs/demo [--output FILE]

Shows loss by stage and data set, the gates, accuracy by skill with intervals, confusions, where answers look in the
mel, a sample of the answers with their recordings, what sounds alike, and where the time went. Reads what the run left
on disk; everything lies inside the file, which needs no network. Written to RUN/report.html unless said otherwise.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.entry import command


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run: output/name")
    parser.add_argument("--output", type=Path, help="file to write")
    arguments = parser.parse_args()
    from megatron_af.report.run import write_report

    print(write_report(arguments.run, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
