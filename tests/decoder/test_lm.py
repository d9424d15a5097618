"""One process: losses, logits, masks and rows of the decoder."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from megatron_af.data.batch import IGNORED
from megatron_af.parallel.global_state import load_global
from tests.decoder.toy import (
    ADDED,
    HIDDEN,
    VOCAB,
    full_audio,
    mixed_rows,
    open_gates,
    plain_rows,
    relative_error,
    single_process_lm,
    toy_config,
)
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow

ROWS = torch.randn(ADDED, HIDDEN, generator=torch.Generator().manual_seed(3)) * 0.15


def losses_and_logits(rank: int, world_size: int) -> None:
    lm = single_process_lm(toy_config())
    load_global([lm], None, open_gates)
    rows, audio = mixed_rows(0)
    losses, logits = lm(rows, audio, ROWS), lm.logits(rows, audio, ROWS)
    assert logits.shape == (*rows.ids_BS.shape, VOCAB + ADDED) and logits.dtype == torch.float32
    labels = rows.labels_BS.flatten()
    expected = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(losses, expected[labels != IGNORED])


def test_losses_are_the_cross_entropy_of_the_supervised_logits():
    run_distributed(losses_and_logits, 1)


def packed_equals_separate(rank: int, world_size: int) -> None:
    """A packed row's second segment reads as it does in a row of its own."""
    lm = single_process_lm(toy_config())
    load_global([lm], None, open_gates)
    rows, audio = mixed_rows(0)
    packed = lm.logits(rows, audio, ROWS)[0]
    for segment in (0, 1):
        where = rows.segment_BS[0] == segment
        alone = plain_rows(1, int(where.sum()))
        alone = dataclasses.replace(alone, ids_BS=rows.ids_BS[:1, where])
        keys = audio.audio_of_BL[0] == segment
        own = dataclasses.replace(
            audio,
            tokens_LBD=audio.tokens_LBD[keys, :1],
            audio_of_BL=torch.zeros(1, int(keys.sum()), dtype=torch.int32),
        )
        torch.testing.assert_close(lm.logits(alone, own, ROWS)[0], packed[where], rtol=1e-5, atol=1e-5)


def test_segments_of_a_packed_row_do_not_see_each_other():
    run_distributed(packed_equals_separate, 1)


def audio_is_ignored_where_none_is_visible(rank: int, world_size: int) -> None:
    lm = single_process_lm(toy_config())
    load_global([lm], None, open_gates)
    rows, audio = mixed_rows(0)
    audio.tokens_LBD.requires_grad_()
    changed = dataclasses.replace(audio, tokens_LBD=audio.tokens_LBD.detach() * -3 + 1)
    before, after = lm.logits(rows, audio, ROWS), lm.logits(rows, changed, ROWS)
    assert torch.equal(before[2], after[2]), "row 2 sees no audio"
    assert not torch.equal(before[0], after[0])
    half = int((rows.last_audio_BS[1] == 0).sum())
    later = dataclasses.replace(audio, tokens_LBD=audio.tokens_LBD.detach().clone())
    later.tokens_LBD[6:, 1] += 5.0
    at_later = lm.logits(rows, later, ROWS)
    assert torch.equal(before[1, :half], at_later[1, :half]), "audio 1 comes after these positions"
    assert not torch.equal(before[1, half], at_later[1, half])
    (gradient,) = torch.autograd.grad(lm(rows, audio, ROWS).sum(), audio.tokens_LBD)
    assert gradient.isfinite().all()
    padding = (audio.audio_of_BL < 0).t()
    assert not gradient[padding].any() and gradient[:8, 0].any() and not gradient[:, 2].any()


def test_a_position_without_visible_audio_hears_exactly_nothing():
    run_distributed(audio_is_ignored_where_none_is_visible, 1)


def no_mask_needed(rank: int, world_size: int) -> None:
    """The kernel without a mask and the one with a mask agree."""
    lm = single_process_lm(toy_config())
    load_global([lm], None, open_gates)
    rows, audio = plain_rows(), full_audio()
    padded = dataclasses.replace(
        audio,
        tokens_LBD=F.pad(audio.tokens_LBD, (0, 0, 0, 0, 0, 5), value=9.0),
        audio_of_BL=F.pad(audio.audio_of_BL, (0, 5), value=-1),
    )
    torch.testing.assert_close(lm.logits(rows, audio, ROWS), lm.logits(rows, padded, ROWS), rtol=1e-5, atol=1e-5)


def test_padding_keys_change_nothing():
    run_distributed(no_mask_needed, 1)


def nothing_supervised(rank: int, world_size: int) -> None:
    lm = single_process_lm(toy_config())
    rows = dataclasses.replace(plain_rows(), labels_BS=torch.full((2, 16), IGNORED))
    load_global([lm], None, open_gates)
    leaf = ROWS.clone().requires_grad_()
    losses = lm(rows, full_audio(), leaf)
    assert losses.shape == (0,)
    losses.sum().backward()
    # Zero, not none: an overlapped reduction waits for every parameter.
    for name, gradient in [("rows", leaf.grad), *((name, p.grad) for name, p in lm.named_parameters())]:
        assert gradient is not None and not gradient.any(), name


def test_a_micro_batch_with_nothing_supervised_has_an_empty_loss():
    run_distributed(nothing_supervised, 1)


def rows_like_a_trainable_table(rank: int, world_size: int, first_added_id: int, tied: bool) -> None:
    """Loss and gradients equal those of a model whose table simply has the rows."""
    rows, audio = mixed_rows(0)
    ids = torch.where(rows.ids_BS >= VOCAB, rows.ids_BS - VOCAB + first_added_id, rows.ids_BS)
    labels = torch.where(rows.labels_BS >= VOCAB, rows.labels_BS - VOCAB + first_added_id, rows.labels_BS)
    rows = dataclasses.replace(rows, ids_BS=ids, labels_BS=labels)
    whole_size = max(VOCAB, first_added_id + ADDED)
    table = {
        name: torch.randn(whole_size, HIDDEN, generator=torch.Generator().manual_seed(i)) * 0.15
        for i, name in enumerate(("lm.embedding.word_embeddings.weight", "lm.output_layer.weight"))
    }
    for weight in table.values():  # with an untied table, the rows serve both ends
        weight[first_added_id : first_added_id + ADDED] = ROWS

    def weights(name: str, shape: torch.Size) -> torch.Tensor:
        return table[name][: shape[0]] if name in table else open_gates(name, shape)

    lm = single_process_lm(toy_config(lm={"tied": tied}), first_added_id=first_added_id)
    load_global([lm], None, weights)
    leaf = ROWS.clone().requires_grad_()
    loss = lm(rows, audio, leaf).sum()
    loss.backward()

    whole = single_process_lm(toy_config(lm={"tied": tied, "vocab": whole_size}), added=0)
    load_global([whole], None, weights)
    expected = whole(rows, audio, ROWS[:0]).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    added = slice(first_added_id, first_added_id + ADDED)
    ends = [(lm.embedding.word_embeddings.weight.grad, whole.embedding.word_embeddings.weight.grad)]
    if not tied:
        ends.append((lm.output_layer.weight.grad, whole.output_layer.weight.grad))
    assert relative_error(leaf.grad, sum(expected[added] for _, expected in ends)) < 1e-5
    for grad, expected_grad in ends:
        kept = expected_grad[:whole_size].clone()
        kept[added] = 0
        assert relative_error(grad[:whole_size], kept) < 1e-5
        assert not grad[whole_size:].any(), "padding rows"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("first_added_id", [VOCAB, VOCAB - 2, VOCAB - 20], ids=["behind", "across", "inside"])
def test_added_rows_train_like_rows_of_the_table(first_added_id, tied):
    run_distributed(rows_like_a_trainable_table, 1, first_added_id, tied)


def frozen_table(rank: int, world_size: int) -> None:
    """What trains beside it gets the gradient that it has beside a trainable one."""
    rows, audio = mixed_rows(0)
    gradients = []
    for kept in ("", ".xattn."):
        lm = single_process_lm(toy_config())
        load_global([lm], None, open_gates)
        for name, parameter in lm.named_parameters():
            parameter.requires_grad = kept in name
        leaf = ROWS.clone().requires_grad_()
        lm(rows, audio, leaf).sum().backward()
        found = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
        gradients.append(found | {"rows": leaf.grad})
    everything, frozen = gradients
    assert frozen["rows"].any(dim=1).all()
    assert frozen.keys() == {"rows", *(name for name in everything if ".xattn." in name)}
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, everything[name])


def test_a_frozen_table_gets_no_gradient():
    run_distributed(frozen_table, 1)


def recomputed_blocks(rank: int, world_size: int) -> None:
    """Nothing that enters the first layer asks for a gradient: only the blocks inside it do."""
    rows, audio = mixed_rows(0)
    gradients = []
    for recompute in ("none", "full"):
        lm = single_process_lm(toy_config(cross_attention={"interval": 1}, recompute=recompute))
        load_global([lm], None, open_gates)
        for name, parameter in lm.named_parameters():
            parameter.requires_grad = ".xattn." in name
        lm(rows, audio, ROWS).sum().backward()
        gradients.append({name: p.grad for name, p in lm.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


def test_recomputation_reaches_blocks_above_a_frozen_table():
    run_distributed(recomputed_blocks, 1)


def half_precision(rank: int, world_size: int) -> None:
    rows, audio = mixed_rows(0)
    losses = {}
    for precision in ("fp32", "bf16"):
        lm = single_process_lm(dataclasses.replace(toy_config(), precision=precision))
        load_global([lm], None, open_gates)
        leaf = ROWS.clone().requires_grad_()
        losses[precision] = lm(rows, audio, leaf)
        losses[precision].sum().backward()
        assert losses[precision].dtype == leaf.grad.dtype == torch.float32 and leaf.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in lm.parameters())
    assert relative_error(losses["bf16"], losses["fp32"]) < 0.05


def test_losses_are_float32_also_in_bf16():
    run_distributed(half_precision, 1)
