"""Packing by two lengths: nothing lost, rows within bounds, little padding."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_af.data.batch import IGNORED, TextRows
from megatron_af.data.packing import pack
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import gather_global
from megatron_af.train.objectives.answer_learner import AnswerLearner, token_shares
from megatron_af.train.trainable import select
from tests import tiny
from tests.data.toy import FRONT_END, open_stream, toy_config
from tests.distributed import run_distributed

SIZES = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 30)), max_size=40)


@given(sizes=SIZES, capacity=st.integers(64, 600), multiple=st.integers(1, 4))
@settings(deadline=None)
def test_every_sample_is_in_one_row_and_rows_respect_the_capacity(
    sizes: list[tuple[int, int]], capacity: int, multiple: int
) -> None:
    rows = pack(sizes, capacity, multiple)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert len(rows) % multiple == 0
    for row in rows:
        assert len(row) <= 1 or sum(sizes[i][0] for i in row) <= max(capacity, max(t for t, _ in sizes))
    assert rows == pack(list(sizes), capacity, multiple)


def test_rows_are_even_in_tokens_and_windows() -> None:
    rng = random.Random(0)
    tokens_padding, windows_padding = [], []
    for _ in range(20):
        sizes = [(rng.randint(20, 120), rng.choice([1, 1, 1, 2, 3, 12, 30])) for _ in range(64)]
        rows = pack(sizes, 1024)
        tokens = [sum(sizes[i][0] for i in row) for row in rows]
        windows = [sum(sizes[i][1] for i in row) for row in rows]
        tokens_padding.append(1 - sum(tokens) / (len(rows) * max(tokens)))
        windows_padding.append(1 - sum(windows) / (len(rows) * max(windows)))
    assert sum(tokens_padding) / 20 < 0.05 and sum(windows_padding) / 20 < 0.2


def test_tokens_share_their_samples_weight() -> None:
    labels = [[5, 5, IGNORED, 5, 5, 5, IGNORED], [IGNORED, 5, 5, 5, 5, IGNORED, IGNORED]]
    segments = [[0, 0, 0, 1, 1, 1, -1], [1, 1, 2, 2, 2, 2, -1]]
    zeros = torch.zeros(2, 7, dtype=torch.int32)
    rows = TextRows(
        ids_BS=zeros.long(), labels_BS=torch.tensor(labels), segment_BS=torch.tensor(segments, dtype=torch.int32),
        first_audio_BS=zeros, last_audio_BS=zeros, dataset_BS=zeros, clips=((), ()),
    )  # fmt: skip
    expected = [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1, 1 / 3, 1 / 3, 1 / 3]
    assert token_shares(rows)[2].tolist() == pytest.approx(expected)


def _gradients(rank: int, world_size: int, folder: Path, pack_tokens: int) -> dict[str, Any]:
    """Loss and gradients of one step of a tiny model on the toy stream."""
    toy = toy_config(folder, sizes=(6, 6))
    base = tiny.config()
    stage = replace(
        base.curriculum["stage"],
        blend={"a": 1.0, "b": 1.0},
        global_batch_samples=8,
        micro_batch_samples=2,
        questions_per_sample=2,
        pack_tokens=pack_tokens,
    )
    model_config = replace(base.model, front_end=FRONT_END, lm=replace(base.model.lm, vocab=300, max_positions=1024))
    config = replace(base, data=toy.data, model=model_config, curriculum={"stage": stage}, output=toy.output)
    stream = open_stream(config)
    batch = stream.batch(1)
    stream.close()
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, Vocabulary(first_added_id=257, num_added=4), current_device())
    tiny.fill(model)
    select(model.named_parameters(), stage)
    objective = AnswerLearner(config, stage, model, groups, torch.device("cpu"))
    record = objective.forward_backward(batch)
    gradients = gather_global(model.chunks, model.front, "main_grad")
    process_groups.destroy()
    shape = [tuple(rows.ids_BS.shape) for rows in batch.text.rows]
    return {"record": record, "gradients": gradients, "shape": shape, "tokens": batch.text.num_tokens}


@pytest.mark.slow
def test_packed_rows_give_the_loss_and_gradients_of_unpacked_ones(tmp_path: Path) -> None:
    (alone,) = run_distributed(_gradients, 1, tmp_path, 0, timeout=120)
    (packed,) = run_distributed(_gradients, 1, tmp_path, 220, timeout=120)
    assert len(packed["shape"]) < len(alone["shape"]) == 4
    positions = [sum(b * s for b, s in run["shape"]) for run in (alone, packed)]
    assert (
        packed["tokens"] == alone["tokens"] and packed["tokens"] / positions[1] > 0.85 > packed["tokens"] / positions[0]
    )
    assert packed["record"] == pytest.approx(alone["record"], rel=1e-6)
    assert packed["record"]["tokens/a"] + packed["record"]["tokens/b"] == packed["record"]["tokens"]
    assert {"sample_loss/a", "sample_loss/b", "loss/a", "loss/b"} <= packed["record"].keys()
    assert packed["gradients"].keys() == alone["gradients"].keys() and any(
        value.abs().max() > 0 for value in alone["gradients"].values()
    )
    for name, expected in alone["gradients"].items():
        error = (packed["gradients"][name] - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert error < 1e-5 or expected.abs().max() < 1e-7, (name, float(error))
