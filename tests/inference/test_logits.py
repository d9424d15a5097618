"""Drawn tokens come as often as they should, from those that may be drawn."""

from collections import Counter

import pytest
import torch

from megatron_af.inference.decoding import Decoding
from megatron_af.inference.logits import drawn, penalized

LOGITS_V = torch.tensor([0.5, 2.0, -1.0, 1.0, 1.5])


def shares(decoding: Decoding, draws: int = 4000) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(drawn(LOGITS_V, decoding, generator) for _ in range(draws))
    return [counts[token] / draws for token in range(5)]


def test_temperature_top_k_and_top_p() -> None:
    hot = (LOGITS_V / 2).softmax(0)
    assert shares(Decoding(temperature=2.0)) == pytest.approx(hot.tolist(), abs=0.03)
    three = torch.where(LOGITS_V > 0.9, LOGITS_V.exp(), 0)
    assert shares(Decoding(temperature=1.0, top_k=3)) == pytest.approx((three / three.sum()).tolist(), abs=0.03)
    # 0.40 and 0.24 are reached by two tokens, 0.65 only by three: the one at which it is reached is in.
    likely = LOGITS_V.softmax(0).sort(descending=True).values.cumsum(0)
    nucleus = float(likely[1]) + 1e-4
    assert shares(Decoding(temperature=1.0, top_p=nucleus)) == pytest.approx((three / three.sum()).tolist(), abs=0.03)
    assert shares(Decoding(temperature=1.0, top_p=1e-9))[1] == 1.0
    assert shares(Decoding(temperature=1e-4))[1] == 1.0


def test_one_number_a_token_whatever_the_settings() -> None:
    states = []
    for decoding in (Decoding(temperature=1.0), Decoding(temperature=0.3, top_k=2, top_p=0.5)):
        generator = torch.Generator().manual_seed(5)
        drawn(LOGITS_V, decoding, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_what_was_seen_becomes_less_likely() -> None:
    changed = penalized(LOGITS_V, [2, 1, 1, 900], 2.0)
    assert changed.tolist() == [0.5, 1.0, -2.0, 1.0, 1.5]
    assert LOGITS_V[1] == 2.0
    assert penalized(LOGITS_V, [1], 1.0) is LOGITS_V
