"""The five criteria, each broken alone, and what rows say against what is claimed of them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from megatron_af.config import (
    Config,
    DataConfig,
    DatasetConfig,
    ImportConfig,
    MeritsConfig,
    NeighboursConfig,
    StageConfig,
)
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.prepare.stage_fit import VERY_LARGE, claims, stage_fit
from megatron_af.prepare.statistics import Statistics


def curriculum(pretrain: str, finetune: str, **datasets: DatasetConfig) -> Config:
    """Pre-training on one data set, then fine-tuning on another; an encoder was trained before."""
    stages = {
        "clap": StageConfig(objective="contrastive", blend=dict.fromkeys(datasets, 1.0)),
        "pretrain": StageConfig(entry={"encoder": "clap", "lm": "x"}, blend={pretrain: 1.0}),
        "finetune": StageConfig(entry={"all": "pretrain"}, blend={finetune: 1.0}),
    }
    return Config(name="x", data=DataConfig(datasets=datasets), curriculum=stages)


def dataset(manifest: str = "a.jsonl", **merits: Any) -> DatasetConfig:
    return DatasetConfig(manifest=manifest, merits=MeritsConfig(**merits))


PLAIN = dataset("plain.jsonl")
GENERATED = dataset(source="model")
KNN = replace(dataset(), neighbours=NeighboursConfig(of="plain"))
IMPORTED = replace(dataset(), origin=ImportConfig(format="audio_flamingo", path="x/interleaved_knn-train.json"))


@pytest.mark.parametrize(
    ("judged", "pre_training", "fine_tuning"),
    [
        (dataset(quality="low"), "", "merits.quality = low; fine-tuning keeps what it sees"),
        (dataset(diversity="low"), "", "merits.diversity = low; its habits would become the model's"),
        (GENERATED, "", "merits.source = model; texts that a model wrote are for pre-training"),
        (dataset(source="model", quality="high"), "", ""),
        (dataset(source="people", quality="high", diversity="high", size="small"), "", ""),
        (KNN, "its rows stand behind examples; those come in fine-tuning", ""),
        (IMPORTED, "its rows stand behind examples; those come in fine-tuning", ""),
        (dataset(), "", ""),
    ],
)
def test_where_a_data_set_belongs(judged: DatasetConfig, pre_training: str, fine_tuning: str) -> None:
    for stage, wanted in (("pretrain", pre_training), ("finetune", fine_tuning)):
        chosen = {"pretrain": "plain", "finetune": "plain"} | {stage: "judged"}
        warnings = list(stage_fit(curriculum(**chosen, plain=PLAIN, judged=judged)))  # type: ignore[arg-type]
        assert len(warnings) == bool(wanted)
        for warning in warnings:
            assert warning.startswith(f"curriculum.{stage}.blend.judged: ") and wanted in warning


def test_only_what_is_very_large_stands_in_both_stages() -> None:
    rows = ImportConfig(format="audio_flamingo", path="x/train.json")
    for size, warned in (("small", 1), ("very_large", 0), ("", 0)):
        first = replace(dataset(size=size), origin=rows)
        again = replace(first, manifest="again.jsonl")
        warnings = list(stage_fit(curriculum("first", "again", first=first, again=again)))
        assert len(warnings) == warned
        assert all("data.datasets.first.merits.size = small: it is pre-trained on" in warning for warning in warnings)
        other = replace(again, origin=replace(rows, path="y/train.json"))
        assert list(stage_fit(curriculum("first", "other", first=first, other=other))) == []


def statistics(rows: int, answers: dict[str, int], problems: int = 0) -> Statistics:
    return Statistics(
        name="a", rows=rows, looked_at=rows, answers=Counter(answers), problems=Counter({"no such file": problems})
        if problems else Counter(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("merits", "found", "warning"),
    [
        (MeritsConfig(size="very_large"), statistics(9, {"a": 1}), "it has 9 rows, below 40,000; set it to small"),
        (MeritsConfig(size="small"), statistics(VERY_LARGE, {"a": 1}), "it has 40,000 rows; set it to very_large"),
        (MeritsConfig(size="very_large"), statistics(VERY_LARGE, {"a": 1}), ""),
        (MeritsConfig(diversity="high"), statistics(9, {"no": 7, "yes": 2}), "78% of its answers are 'no'"),
        (MeritsConfig(diversity="high"), statistics(9, {"no": 6, "yes": 4}), ""),
        (MeritsConfig(diversity="low"), statistics(9, {"no": 9}), ""),
        (MeritsConfig(quality="high"), statistics(9, {"a": 1}, 2), "2 of 9 rows cannot be used (no such file)"),
        (MeritsConfig(quality="low"), statistics(9, {"a": 1}, 2), ""),
    ],
)
def test_what_the_rows_say(merits: MeritsConfig, found: Statistics, warning: str) -> None:
    warnings = list(claims(merits, found))
    assert len(warnings) == bool(warning)
    assert all(warning in said and said.startswith("data.datasets.a.merits.") for said in warnings)


def test_shipped_curricula_are_well_mixed() -> None:
    config = load_config(CONFIGS / "af1.yaml")
    assert list(stage_fit(config)) == []
    judged = [name for name, settings in config.data.datasets.items() if settings.merits != MeritsConfig()]
    assert len(judged) > 10
    pretrain, foundation = config.curriculum["pretrain"], config.curriculum["foundation"]
    first, second = replace(pretrain, blend=foundation.blend), replace(foundation, blend=pretrain.blend)
    turned = config.curriculum | {"pretrain": first, "foundation": second}
    warnings = list(stage_fit(replace(config, curriculum=turned)))
    assert len(warnings) > 20
