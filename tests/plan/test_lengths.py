"""Lengths come from the data where it is there, as given where they are, and else from what the stage allows."""

import dataclasses
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers.models import WordLevel

from megatron_af.config import ConfigError, DataConfig, DatasetConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.plan.lengths import GivenLengths, lengths_of, read_lengths
from tests import tiny


def test_without_data_every_sample_is_as_long_as_the_stage_allows() -> None:
    found = lengths_of(tiny.config(), "stage", {})
    assert found.longest and found.samples[0].windows == (3,)
    assert found.samples[0].tokens == tiny.config().curriculum["stage"].max_text_tokens
    assert found.total == 0, "as many as its steps take"


def test_given_lengths_are_cut_to_what_the_stage_hears() -> None:
    given = GivenLengths(samples=1000, seconds=(0, 5, 25, 300), tokens=(100, 900), supervised=0.5)
    found = lengths_of(tiny.config(), "stage", {"stage": given})
    assert {sample.windows for sample in found.samples} == {(), (1,), (3,)}
    assert {sample.tokens for sample in found.samples} == {100, 512} and found.total == 1000


def test_of_data_that_is_there(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    base = tokenizers.Tokenizer(WordLevel(words, unk_token="w0"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.save(str(tmp_path / "tokenizer.json"))
    for name, seconds in (("a", 5.0), ("b", 25.0)):
        rows = [
            {
                "id": f"{name}{i}",
                "clips": [{"path": f"{i}.wav", "duration": seconds}],
                "questions": [{"prompt": "w1 w2", "output": "w3 w4 w5"}],
            }
            for i in range(4)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny.config()
    datasets = {name: DatasetConfig(manifest=f"{name}.jsonl") for name in "ab"}
    data = DataConfig(root=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json"), datasets=datasets)
    stage = dataclasses.replace(config.curriculum["stage"], blend={"a": 3.0, "b": 1.0}, passes=2.0)
    config = dataclasses.replace(config, data=data, curriculum={"stage": stage})
    found = lengths_of(config, "stage", {})
    assert not found.longest and found.told.endswith("drawn from the 8 rows of a, b")
    assert found.total == 2 * (3 * 4 + 1 * 4)
    shares = [sum(sample.windows == (count,) for sample in found.samples) / len(found.samples) for count in (1, 3)]
    assert shares == pytest.approx([0.75, 0.25], abs=0.05)
    assert all(sample.supervised * sample.tokens >= 3 for sample in found.samples)


@pytest.mark.parametrize("file", sorted((CONFIGS / "lengths").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_lengths_name_stages_and_their_source(file: Path) -> None:
    given = read_lengths(file.stem)
    top = next(path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem.startswith(file.stem))
    assert set(given) <= set(load_config(top).curriculum)
    assert all(stage.source and stage.samples for stage in given.values())


def test_lengths_that_nobody_wrote() -> None:
    with pytest.raises(ConfigError, match=r"--lengths af3: no such file; did you mean af"):
        read_lengths("af3")


def test_passes_over_data_that_is_not_there_have_no_number() -> None:
    config = tiny.config()
    stage = dataclasses.replace(config.curriculum["stage"], passes=1.0)
    config = dataclasses.replace(config, curriculum={"stage": stage})
    assert lengths_of(config, "stage", {}).total == 0
