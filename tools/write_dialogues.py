"""Write conversations about recordings with a language model behind an OpenAI-compatible endpoint.

    python tools/write_dialogues.py --config configs/jobs/write_dialogues.yaml source=in.jsonl output=out.jsonl

Rows of the source say what is heard in a recording: ``spans`` (strong labels) or captions. The endpoint's key, if it
needs one, stands in the environment's OPENAI_API_KEY. Rows whose replies stay unusable are left out and listed in
``OUTPUT.refused``. A job that was stopped goes on where it was. Exit codes: 0 done, 1 more than a tenth of the rows was
refused or the endpoint failed, 2 the configuration cannot be used.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.config.keys import describe
from megatron_af.config.loading import read_values
from megatron_af.entry import command
from megatron_af.prepare.dialogues import DialogueConfig, write_dialogues
from megatron_af.progress import Progress


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=describe(DialogueConfig), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path, help="YAML file of the job")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_args()
    config = read_values(DialogueConfig, arguments.config, arguments.overrides)
    with Progress() as progress:
        report = write_dialogues(config, lambda done, rows: progress.update("rows", done, rows))
    print(*report.lines, sep="\n")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
