"""Turn other people's weights into a checkpoint that stages start from, and a language model back into their layout.

    torchrun --nproc_per_node 2 tools/convert_checkpoint.py --config configs/af2_3b.yaml \
        --from models/Qwen2.5-3B --to checkpoints/qwen2.5-3b [parallel.tensor=2]
    torchrun --nproc_per_node 2 tools/convert_checkpoint.py --config configs/af2_3b.yaml \
        --from runs/af2_3b/long/checkpoints/step_00020000 --to published/qwen2.5-3b [parallel.tensor=2]

Of a Hugging Face folder (config.json, *.safetensors) of Qwen2, Qwen2.5 or OPT the checkpoint holds the language model
and the rows of added tokens, which start at the mean row of the table; of Audio Flamingo 2's ``safe_ckpt``
(metadata.json, model_chunk_*.safetensors) the whole model; of Audio Flamingo 1's file (foundation.pt, chat.pt) all but
the encoder. Every layout reads it, whatever layout wrote it; a stage names it in its ``entry``, the whole model by
``all``:

    entry: {lm: checkpoints/qwen2.5-3b/step_00000000, rows: checkpoints/qwen2.5-3b/step_00000000}

Of a file of ClapCap (clapcap_weights_2023.pth, what Audio Flamingo 1 hears through), LAION-CLAP or AF-CLAP, or of a
Hugging Face folder of LAION-CLAP, it holds the encoder:

    python tools/convert_checkpoint.py --config configs/af1.yaml \
        --from clapcap_weights_2023.pth --to checkpoints/clapcap

Of a checkpoint of ours, the language model becomes a Hugging Face folder, its adapters merged; with ``--adapter``, the
adapters alone become a folder that peft loads onto the Hugging Face model. The whole model: tools/export.py.
"""

import argparse
import os
import sys
from pathlib import Path

from megatron_af.config import ConfigError
from megatron_af.config.loading import load_config
from megatron_af.entry import command, importing
from megatron_af.runs.check import check


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of a run with this model and tokenizer")
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, help="folder, encoder's file, or checkpoint of ours"
    )
    parser.add_argument("--to", dest="target", type=Path, required=True, help="folder to write into")
    parser.add_argument("--adapter", action="store_true", help="of a checkpoint of ours, its adapters alone, for peft")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys of the YAML file")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    if problems := check(config, int(os.environ.get("WORLD_SIZE", "1"))):
        raise ConfigError(f"{config.name} cannot be built", problems)
    # Imported only now: a command answers at once, and megatron-core must be made portable before its modules run.
    with importing():
        import torch.distributed as dist

        from megatron_af.parallel.world import join_world

        join_world()
        from megatron_af.train.conversion import convert

    written = convert(config, arguments.source, arguments.target, adapter=arguments.adapter, tell=print)
    if dist.get_rank() == 0:
        print(f"wrote {written}")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
