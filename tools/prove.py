"""Does every layout compute what one process computes? Asked of your own configuration, in a minute, without a GPU.

    python tools/prove.py --config FILE [--ranks 4] [--folder proof] [key=value …]

Shrinks the stages of the curriculum (or ``stage=NAME``) to seconds and keeps their structure, makes up rows and
recordings, and trains each over gloo by one process and in the layouts that so many processes can hold: the
configuration's own scaled down, and data, tensor and pipeline parallelism alone and together. Compared are loss and
counts, every gradient, the weights, the order of the data, and what a resume computes; the card (``card.md``,
``card.json``) names the worst tensor of each. Exit codes: 0 all of it holds, 42 something does not, 2 the configuration
cannot run.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from megatron_af.config import ConfigError
from megatron_af.config.errors import suggestion
from megatron_af.config.loading import load_config
from megatron_af.entry import command, importing
from megatron_af.files import write

BROKEN = 42


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--ranks", type=int, default=2, help="most processes that one layout may take: 2 or more")
    parser.add_argument("--folder", help="where the card goes; without it OUTPUT/NAME/proof")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    if config.stage and config.stage not in config.curriculum:
        known = suggestion(config.stage, list(config.curriculum))
        raise ConfigError(f"stage = {config.stage}: not in curriculum{known}")
    if not config.curriculum:
        raise ConfigError(f"{options.config} has no curriculum: there is no stage to prove")
    if options.ranks < 2:
        raise ConfigError(f"--ranks {options.ranks}: give 2 or more, for one process is what others are compared with")

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same on every machine, and forked processes share no GPU
    os.environ.update(OMP_NUM_THREADS="1", CUDA_DEVICE_MAX_CONNECTIONS="1")
    with importing():
        from megatron_af.parallel.device import make_megatron_portable

        make_megatron_portable()
        from megatron_af.prove.card import card, markdown
        from megatron_af.prove.proof import prove

    proof = prove(config, options.ranks, lambda line: print(line, flush=True))
    record = card(config, proof, options.ranks)
    folder = Path(options.folder) if options.folder else Path(config.output) / config.name / "proof"
    write(folder / "card.json", json.dumps(record, indent=1) + "\n")
    write(folder / "card.md", markdown(record))
    broken = [finding for finding in proof.findings if not finding.holds]
    verdict = f"{len(broken)} of {len(proof.findings)} comparisons are broken" if broken else "everything holds"
    print(f"{verdict}; {proof.seconds:.0f} s, {folder / 'card.md'}")
    return BROKEN if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
