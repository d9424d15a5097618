"""Caption data out of long videos, in two steps around the captioners.

    python tools/mine_clips.py cut    --config configs/jobs/mine_clips.yaml [key=value …]
    python tools/mine_clips.py select --config configs/jobs/mine_clips.yaml [key=value …]

``cut`` writes the segments; captioners of picture and sound fill in ``visual_caption`` and ``audio_caption``;
``select`` drops the segments where both say the same and writes rows, and ``tools/prepare_data.py prepare`` takes the
audio out of the videos. Exit codes: 0 done, 1 nothing was kept, 2 the job cannot run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_af.config import ClapConfig, ConfigError
from megatron_af.config.keys import describe
from megatron_af.config.loading import read_values
from megatron_af.entry import command, importing
from megatron_af.prepare.mining import MiningConfig, Report, cut, select


def mine(step: str, config: MiningConfig) -> Report:
    if step == "cut":
        return cut(config)
    if not config.text_model:
        raise ConfigError("nothing compares the captions", ["text_model is not set: name a sentence encoder"])
    with importing():
        import torch

        from megatron_af.audio.text_tower import TextTower

    tower = TextTower(ClapConfig(text_tower=config.text_model, text_max_tokens=128)).eval()

    @torch.no_grad()
    def similarity(pictures: Sequence[str], sounds: Sequence[str]) -> list[float]:
        if not pictures:
            return []
        a, b = (tower(*tower.tokenize(texts)) for texts in (pictures, sounds))
        return torch.nn.functional.cosine_similarity(a, b).tolist()

    return select(config, similarity)


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=describe(MiningConfig), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["cut", "select"])
    parser.add_argument("--config", required=True, type=Path, help="YAML file of the job")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_intermixed_args()
    report = mine(arguments.step, read_values(MiningConfig, arguments.config, arguments.overrides))
    print(f"{report.kept:,} segments kept")
    for reason, count in sorted(report.dropped.items()):
        print(f"  {count:,} dropped: {reason}")
    return 0 if report.kept else 1


if __name__ == "__main__":
    sys.exit(main())
