"""A scene of sounds at known times."""

import random

from megatron_af.prepare.strong_labels import Sound

LABELS = ["dog", "rain", "bell", "car", "wind", "door", "cat", "siren"]


def scene(rng: random.Random) -> list[Sound]:
    found, at = [], 0.0
    for _ in range(rng.randrange(1, 7)):
        at += rng.uniform(0.1, 3.0)
        found.append(Sound(label=rng.choice(LABELS[:5]), start=at, end=at + rng.uniform(0.3, 2.5)))
    return found
