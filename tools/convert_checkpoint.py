"""Turn downloaded weights into a checkpoint that stages start from: Qwen2 or Qwen2.5, or a released Audio Flamingo 2.

    torchrun --nproc_per_node 2 tools/convert_checkpoint.py --config configs/af2_3b.yaml \
        --from models/Qwen2.5-3B --to checkpoints/qwen2.5-3b [parallel.tensor=2]

Of a Hugging Face folder of Qwen2 (config.json, *.safetensors) it holds the language model and the rows of added
tokens, which start at the mean row of the table; of Audio Flamingo 2's ``safe_ckpt`` (metadata.json,
model_chunk_*.safetensors) the whole model, encoder included. Every layout reads it, whatever layout wrote it; a stage
names it in its ``entry``, the whole model by ``all``:

    entry: {lm: checkpoints/qwen2.5-3b/step_00000000, rows: checkpoints/qwen2.5-3b/step_00000000}
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.parallel.device import current_device
from megatron_af.parallel.world import join_world
from megatron_af.runs.check import check

LANGUAGE, WHOLE = ("lm", "rows"), ("encoder", "transform", "rows", "xattn", "lm")  # of Qwen2, of a released AF2


def convert(config: Config, source: Path, target: Path) -> Path:
    """Write the checkpoint; a collective of the whole world. Returns its folder.

    Raises:
        ValueError, FileNotFoundError: ``source`` is no such folder or holds another model than ``config`` says.
    """
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.convert.language import LanguageFolder, load_language
    from megatron_af.convert.released import ReleasedFolder, load_released
    from megatron_af.model import Vocabulary, build
    from megatron_af.parallel import groups as process_groups
    from megatron_af.runs.paths import Resume
    from megatron_af.text.tokenizer import Tokenizer
    from megatron_af.train.checkpoint import Checkpoints

    released = ReleasedFolder(source) if (source / "metadata.json").is_file() else None
    folder = None if released else LanguageFolder(source, config.model.lm.family)
    if folder:
        folder.check(config.model.lm)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    groups = process_groups.initialize(config.parallel, config.seed)
    vocabulary = Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)
    model = build(config, vocabulary, current_device())
    if released:
        load_released(model, released.source, config.model, vocabulary)
    elif folder:
        load_language(model.chunks, folder.source, config.model.lm)
        added_rows = model.front.get_parameter("added_rows")
        with torch.no_grad():
            added_rows.copy_(folder.mean_row(tokenizer.first_added_id).expand_as(added_rows))
    parts = WHOLE if released else LANGUAGE
    resume: Resume = {
        "stage": f"converted from {source.name}",
        "step": 0,
        "skipped": 0,
        "samples": 0,
        "world_size": dist.get_world_size(),
    }
    written = Checkpoints(target, keep=1).save(model, None, groups, resume, {}, parts, to_yaml(config))
    process_groups.destroy()
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of a run with this model and tokenizer")
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, help="folder of Qwen2 or safe_ckpt"
    )
    parser.add_argument("--to", dest="target", type=Path, required=True, help="folder to write the checkpoint into")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys of the YAML file")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if problems := check(config, int(os.environ.get("WORLD_SIZE", "1"))):
            raise ConfigError(f"{config.name} cannot be built", problems)
        join_world()
        written = convert(config, arguments.source, arguments.target)
    except (ConfigError, ValueError, KeyError, FileNotFoundError) as error:
        print(error.args[0] if isinstance(error, KeyError) else error, file=sys.stderr)
        return 2
    if dist.get_rank() == 0:
        print(f"wrote {written}")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
