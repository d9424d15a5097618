"""Export a trained model as a folder that transformers loads, without this project and without megatron-core.

    python tools/export.py runs/demo/releases/3f2a91c04d7e published/demo

The first argument is a release, or what else `megatron_af.load` takes: a run, a stage, a checkpoint. The folder has to
be new or empty, and appears whole:

    AutoModelForCausalLM.from_pretrained("published/demo", trust_remote_code=True)
"""

import argparse
import sys
from pathlib import Path

from megatron_af.entry import command, importing


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, help="folder of a release, run, stage or checkpoint")
    parser.add_argument("folder", type=Path, help="new or empty folder to write")
    arguments = parser.parse_args()
    # Imported only now: a command answers at once, and megatron-core must be made portable before its modules run.
    with importing():
        import torch.distributed as dist

        from megatron_af.parallel.world import join_world

        join_world()
        from megatron_af.release.export import export

    try:
        written = export(arguments.release, arguments.folder)
    finally:
        dist.destroy_process_group()
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
