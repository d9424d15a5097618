"""A word-level tokenizer of the words in a run's rows: made, or extended by those that it lacks.

    python tools/make_tokenizer.py --config FILE [--from TOKENIZER] [key=value ...]

Reads the rows of every data set of ``data.datasets`` that has been imported or prepared, and writes ``data.tokenizer``.
What is there already is extended: its words keep their ids. ``--from`` extends another one into it, so that a model
that was trained with that one can be trained on. For a small language model of one's own; one from the hub brings its
tokenizer, which can write every word.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.config.loading import load_config
from megatron_af.entry import command
from megatron_af.prepare.vocabulary import make_tokenizer


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--from", dest="start", type=Path, help="tokenizer.json, or its folder, to extend")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    made = make_tokenizer(config, options.start)
    print(f"{made.file}: {made.tokens:,} tokens, {len(made.new):,} new, of the rows of {', '.join(made.datasets)}")
    if made.new:
        print(f"  {', '.join(made.new[:12])}{', …' if len(made.new) > 12 else ''}")
    if problem := config.model.lm.too_few_rows(made.words):
        print(f"  {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
