"""Rows, recordings and a tokenizer made up for a proof: no file of the user's is read.

    write_material(small, neighbours={"few_shot"})     # fills data.root of a configuration that ``shrink`` made

Every kind of row that a stage may meet is among them: without a clip, with two, of several questions, a conversation,
and behind examples where the data set is made of neighbours.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import soundfile
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_af.config import Config
from megatron_af.data.rows import Clip, Question, Row, to_json
from megatron_af.files import appearing, write
from megatron_af.text.tokenizer import END_OF_SEQUENCE, OPT_BEGIN, OPT_PAD

ROWS = 24
WORDS = ("rain", "a dog", "two bells", "wind in trees", "a door", "a violin and a drum", "frogs", "a train passes")


def write_material(small: Config, neighbours: Collection[str] = ()) -> None:
    """
    Args:
        neighbours: data sets whose rows stand behind examples.
    """
    root, stage = Path(small.data.root), small.curriculum[small.stage]
    with appearing(Path(small.data.tokenizer)) as draft:
        _bytes_tokenizer(small.data.text_style).save(str(draft))
    for name, dataset in small.data.datasets.items():
        kind = "examples" if name in neighbours else "mixed" if stage.objective == "answer" else "captions"
        rows = [_row(small, root, name, number, kind) for number in range(ROWS)]
        write(root / dataset.manifest, "".join(to_json(row) + "\n" for row in rows))


def _bytes_tokenizer(style: str) -> tokenizers.Tokenizer:
    """256 bytes, no merges, and what begins, ends and fills sequences: Qwen2.5's token, or OPT's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens([OPT_PAD, OPT_BEGIN] if style == "af1" else [END_OF_SEQUENCE[0]])
    return base


def _row(small: Config, root: Path, name: str, number: int, kind: str) -> Row:
    said = WORDS[number % len(WORDS)]
    clips = {"captions": 1, "examples": 3, "mixed": (1, 2, 1, 0)[number % 4]}[kind]
    template = "interleaved" if kind == "examples" else "dialogue" if clips == 1 and number % 6 == 2 else "single"
    questions = tuple(
        Question(prompt=f"{'what is it' if i else 'who'} {number}?", output=f"{said}{' and more' * i}")
        for i in range(clips if kind == "examples" else 2)
    )
    return Row(
        id=f"{name}-{number}",
        clips=tuple(_clip(small, root, f"{name}/{number}-{i}.wav", number * 5 + i * 3) for i in range(clips)),
        questions=questions,
        captions=tuple(chr(ord("a") + number) * (3 + i) for i in range(1 + number % 3)),
        negatives=tuple(chr(ord("a") + number) + "0" * (3 + i) for i in range(number % 2)),
        template=template,
    )


def _clip(small: Config, root: Path, path: str, draw: int) -> Clip:
    """A tone in a little noise, of half a window to as many windows as a clip may have.

    Each has another pitch: recordings that sound alike would give a contrastive loss gradients that cancel out.
    """
    front, stage = small.model.front_end, small.curriculum[small.stage]
    seconds = front.window_seconds * (0.5 + draw % 6 / 2) * min(1.0, stage.max_windows / 2)
    time_N = np.arange(round(seconds * front.sample_rate)) / front.sample_rate
    pitch = front.min_hz * (front.max_hz / front.min_hz) ** (draw * 7 % 31 / 31)
    noise_N = np.random.default_rng(draw).standard_normal(len(time_N))
    samples_N = 0.3 * np.sin(2 * np.pi * pitch * time_N) + 0.01 * noise_N
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / path, samples_N.astype(np.float32), front.sample_rate)
    return Clip(path=path, duration=seconds)
