"""Rows of added tokens beside a table: the same as a table that has them, on one rank and on each of several."""

import pytest
import torch

from megatron_af.config import LMConfig
from megatron_af.decoder.added_tokens import TokenTable, replace_added, token_logits

HIDDEN, ADDED = 6, 3


def tables(vocab: int, first: int, ranks: int) -> list[TokenTable]:
    lm = LMConfig(vocab=vocab)
    return [TokenTable.of(lm, first, ADDED, tensor_size=ranks, tensor_rank=rank) for rank in range(ranks)]


@pytest.mark.parametrize(("vocab", "first"), [(90, 90), (90, 88), (90, 10), (64, 70)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_table_without_gap_or_overlap(vocab: int, first: int, ranks: int) -> None:
    shared = tables(vocab, first, ranks)
    whole = shared[0]
    assert whole.num_tokens == max(vocab, first + ADDED) <= whole.padded_rows
    assert whole.padded_rows % ranks == 0 and whole.padded_rows % 8 == 0
    for row in range(whole.padded_rows + 1):
        assert sum(table.local(row) for table in shared) == row
    ids = torch.arange(whole.num_tokens)
    assert ids[whole.is_added(ids)].tolist() == list(range(first, first + ADDED))


def test_one_padding_fits_every_layout_up_to_eight_ranks() -> None:
    assert len({table.padded_rows for ranks in (1, 2, 4, 8) for table in tables(151_936, 151_665, ranks)}) == 1
    assert tables(151_936, 151_665, 1)[0].padded_rows % (8 * 128) == 0
    assert tables(90, 90, 1)[0].padded_rows == 128


@pytest.mark.parametrize(("vocab", "first"), [(90, 90), (90, 88), (90, 10)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_logits_and_gradients_are_those_of_a_whole_table(vocab: int, first: int, ranks: int) -> None:
    shared = tables(vocab, first, ranks)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shared[0].padded_rows, HIDDEN, generator=generator)
    rows = torch.randn(ADDED, HIDDEN, generator=generator).requires_grad_()
    hidden = torch.randn(4, HIDDEN, generator=generator).requires_grad_()
    parts = [part.clone().requires_grad_() for part in weight.chunk(ranks)]
    logits = torch.cat([token_logits(t, hidden, part, rows) for t, part in zip(shared, parts, strict=True)], 1)
    count = shared[0].num_tokens
    assert (logits[:, count:] == -torch.inf).all()

    whole = weight.clone()
    whole[first : first + ADDED] = rows.detach()
    leaf, other = whole.requires_grad_(), hidden.detach().clone().requires_grad_()
    expected = other @ leaf.t()
    torch.testing.assert_close(logits[:, :count], expected[:, :count])
    pull = torch.randn(4, count, generator=generator)
    (logits[:, :count] * pull).sum().backward()
    (expected[:, :count] * pull).sum().backward()
    torch.testing.assert_close(hidden.grad, other.grad)
    torch.testing.assert_close(rows.grad, leaf.grad[first : first + ADDED])
    kept = leaf.grad.clone()
    kept[first : first + ADDED] = 0
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), kept)


def test_lookups_take_added_rows_from_beside_the_table() -> None:
    (table,) = tables(90, 88, 1)
    ids = torch.tensor([[3, 88], [90, 87]])
    embedded, rows = torch.zeros(2, 2, HIDDEN), torch.randn(ADDED, HIDDEN)
    found = replace_added(table, ids, embedded, rows)
    assert torch.equal(found[0, 1], rows[0]) and torch.equal(found[1, 0], rows[2])
    assert not found[0, 0].any() and not found[1, 1].any()
    none = TokenTable(vocab=90, first_added_id=90, num_added=0, tensor_size=1, tensor_rank=0)
    assert replace_added(none, ids, embedded, rows[:0]) is embedded
