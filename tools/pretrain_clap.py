"""Pre-train the audio encoder contrastively (AF-CLAP) on any number of processes.

    torchrun --nproc_per_node 2 tools/pretrain_clap.py --config configs/demo.yaml [stage=clap] [key=value …]

This is tools/pretrain_af.py with another default: without ``stage`` it trains the first stage whose objective is
``contrastive``. Data, loop, checkpoints, log and resume are the same. A later stage takes the encoder with
``entry: {encoder: clap}``, or with the path of the checkpoint in place of the stage's name.
"""

import sys

from pretrain_af import main

if __name__ == "__main__":
    sys.exit(main(__doc__, objective="contrastive"))
