"""Make questions that teach skills (AudioSkills, LongAudio) of what is known about recordings.

    python tools/make_skills.py --config configs/jobs/make_skills.yaml source=strong.jsonl output=skills.jsonl

Rows of the source say what is heard: ``spans`` (strong labels), captions, ``meta.transcript``. Labels alone give
temporal order, attributes, referring and grounding, counting and what lasts longest; the other kinds are written by a
language model behind an OpenAI-compatible endpoint (``written``), whose key, if it needs one, stands in OPENAI_API_KEY.
Options are balanced over their places, and the report says how much the text alone gives away. A job that was stopped
goes on where it was. Exit codes: 0 done, 1 more than a tenth was refused or the endpoint failed, 2 the configuration
cannot be used.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.config.keys import describe
from megatron_af.config.loading import read_values
from megatron_af.entry import command
from megatron_af.prepare.skills import SkillsConfig, make_skills
from megatron_af.progress import Progress


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=describe(SkillsConfig), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path, help="YAML file of the job")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_args()
    config = read_values(SkillsConfig, arguments.config, arguments.overrides)
    with Progress() as progress:
        report = make_skills(config, progress.update)
    print(*report.lines, sep="\n")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
