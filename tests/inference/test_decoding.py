"""Settings of an answer that cannot be are refused by name."""

import pytest

from megatron_af.inference.decoding import Decoding


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number from 1 on, got 0"),
        ({"top_k": 1.5}, "top_k: expected a whole number from 0 on, got 1.5"),
        ({"beams": True}, "beams: expected a whole number from 1 on, got True"),
        ({"seed": 2**63}, "seed: expected less than 2^63"),
        ({"temperature": float("nan")}, "temperature: expected a number from 0 on, got nan"),
        ({"temperature": 10**400}, "temperature: expected a number from 0 on, got 1000"),
        ({"repetition_penalty": 10**400}, "repetition_penalty: expected a number above 0, got 1000"),
        ({"temperature": -1}, "temperature: expected a number from 0 on, got -1"),
        ({"length_penalty": float("inf")}, "length_penalty: expected a number, got inf"),
        ({"top_p": 1.1}, "top_p: expected a number above 0, at most 1, got 1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, got 0"),
        ({"logprobs": 21}, "logprobs: expected a whole number from 0 to 20, got 21"),
        ({"stop": ("",)}, "stop: expected texts that are not empty"),
        ({"beams": 2, "temperature": 0.5}, "temperature: beam search (beams = 2) draws nothing, expected 0, got 0.5"),
        ({"beams": 2, "logprobs": 1}, "logprobs: not told of a searched answer (beams = 2)"),
    ],
)
def test_what_cannot_be_decoded_so(change: dict[str, object], says: str) -> None:
    (problem,) = Decoding(**change).problems()  # type: ignore[arg-type]
    assert problem.startswith(says)
    assert not list(Decoding(temperature=1, stop=("a",), logprobs=20, length_penalty=-1).problems())
