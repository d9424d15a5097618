"""What fits is ranked, and what does not has a nearest change that does."""

import dataclasses
from itertools import pairwise

import pytest

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config
from megatron_af.plan.gpu import Gpu, read_gpu
from megatron_af.plan.layouts import as_configured, best, layouts, nearest, search
from megatron_af.plan.lengths import GivenLengths, Lengths, lengths_of
from tests import tiny


def setting(memory_gib: float, **parallel: object) -> tuple[Config, Gpu, Lengths]:
    config = tiny.config(**parallel)  # type: ignore[arg-type]
    return config, dataclasses.replace(read_gpu("cpu"), memory_gib=memory_gib), lengths_of(config, "stage", {})


def test_the_fastest_comes_first_and_all_of_them_fit() -> None:
    config, gpu, lengths = setting(8.0)
    tried = search(config, "stage", gpu, 4, lengths)
    found = best(config, "stage", gpu, 4, lengths, tried, 3)
    times = [one.plan.time.total for one in tried if one.plan.fits]
    assert len(found) == 3 and all(one.plan.fits for one in found)
    assert all(one <= 1.07 * other for one, other in pairwise(times)), "those that are about as fast may change places"
    for one in found:
        changed = one.changes.of(config, "stage")
        again = as_configured(changed, "stage", gpu, 4, lengths)
        assert again.time.total == pytest.approx(one.plan.time.total), "what is told is what the changes do"


def test_less_memory_brings_recomputation_or_smaller_micro_batches() -> None:
    config, gpu, lengths = setting(8.0)
    whole = as_configured(config, "stage", gpu, 1, lengths)
    small = dataclasses.replace(gpu, memory_gib=0.9 * whole.needed / 2**30)
    tried = search(config, "stage", small, 1, lengths)
    close = nearest(config, "stage", tried)
    assert not as_configured(config, "stage", small, 1, lengths).fits
    assert close is not None and close.plan.fits
    changes = close.changes.differing(config, "stage")
    assert len(changes) == 1 and changes[0].split("=")[0] in (
        "parallel.recompute", "curriculum.stage.micro_batch_samples", "curriculum.stage.pack_tokens",
    )  # fmt: skip


def test_short_samples_are_packed() -> None:
    config = load_config("configs/af2_0.5b.yaml", ["curriculum.pretrain.pack_tokens=0"])
    given = {"pretrain": GivenLengths(samples=100_000, seconds=(10.0,), tokens=(40, 60, 500), supervised=0.3)}
    gpu, lengths = read_gpu("h100"), lengths_of(config, "pretrain", given)
    tried = search(config, "pretrain", gpu, 64, lengths)
    found = next(one for one in best(config, "pretrain", gpu, 64, lengths, tried, 2) if not one.changes.cached)
    packed = found.plan.case.stage.pack_tokens
    assert f"curriculum.pretrain.pack_tokens={packed}" in found.changes.differing(config, "pretrain")
    assert found.plan.load.text_stretches and packed >= config.curriculum["pretrain"].max_text_tokens
    loose = as_configured(config, "pretrain", gpu, 64, lengths)
    assert found.plan.time.operations < 0.8 * loose.time.operations, "less of it is padding"
    again = as_configured(found.changes.of(config, "pretrain"), "pretrain", gpu, 64, lengths)
    assert again.time.total == pytest.approx(found.plan.time.total)


def test_rows_that_the_longest_sample_does_not_fit_into_are_not_tried() -> None:
    config = load_config("configs/af2_0.5b.yaml", ["curriculum.pretrain.max_text_tokens=4000"])
    tried = {dict(one.stage)["pack_tokens"] for one in layouts(config, "pretrain", read_gpu("h100"), 8)}
    assert tried == {0, 4096, 8192, 16384}


def test_a_model_that_fits_nowhere_has_no_nearest() -> None:
    config, gpu, lengths = setting(0.001)
    tried = search(config, "stage", gpu, 2, lengths)
    assert nearest(config, "stage", tried) is None and tried
    needed = [one.plan.needed for one in tried]
    assert needed == sorted(needed), "what needs the least comes first"


def test_more_gpus_than_the_batch_can_use_are_answered_with_the_nearest_number() -> None:
    config, gpu, lengths = setting(8.0)
    with pytest.raises(ConfigError, match=r"cannot be laid on 64 GPUs .*; --gpus 4 works"):
        as_configured(config, "stage", gpu, 64, lengths)


def test_gpus_that_the_layout_does_not_divide() -> None:
    config, gpu, lengths = setting(8.0, tensor=2)
    with pytest.raises(ConfigError, match=r"on 3 GPUs .*--gpus 2 or 4 works"):
        as_configured(config, "stage", gpu, 3, lengths)


def test_a_frozen_encoder_is_offered_a_cache() -> None:
    config = tiny.config(("transform.*", "added_rows", "lm.*.xattn.*"))
    gpu, lengths = read_gpu("cpu"), lengths_of(config, "stage", {})
    tried = search(config, "stage", gpu, 1, lengths)
    found = best(config, "stage", gpu, 1, lengths, tried, 2)
    assert "data.feature_cache=FOLDER" in found[0].changes.differing(config, "stage")
    assert found[0].plan.time.total < found[1].plan.time.total
    learns = tiny.config(tiny.FROZEN_LM)
    tried = search(learns, "stage", gpu, 1, lengths)
    assert not best(learns, "stage", gpu, 1, lengths, tried, 1)[0].changes.cached
