"""Made-up rows are rows, of every kind that a stage meets, and the same every time."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import DatasetConfig
from megatron_af.config.data import NeighboursConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.data.rows import Manifest
from megatron_af.prove.material import write_material
from megatron_af.prove.shrink import shrink
from megatron_af.runs.digests import digest_tree
from megatron_af.text.tokenizer import Tokenizer


def test_rows_of_every_kind_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo_af1.yaml")
    digests = []
    for place in ("one", "two"):
        small = shrink(config, "foundation", tmp_path / place)
        write_material(small, {"scenes_knn_4", "scenes_knn_8"})
        digests.append(digest_tree(Path(small.data.root)))
    assert digests[0] == digests[1]
    rows = list(Manifest(Path(small.data.root) / "scenes.jsonl"))
    assert {len(row.clips) for row in rows} == {0, 1, 2} and {row.template for row in rows} == {"single", "dialogue"}
    examples = list(Manifest(Path(small.data.root) / "scenes_knn_4.jsonl"))
    assert {(row.template, len(row.clips), len(row.questions)) for row in examples} == {("interleaved", 3, 3)}
    assert all((Path(small.data.root) / clip.path).is_file() for row in rows for clip in row.clips)


@pytest.mark.parametrize(("name", "begins"), [("demo", False), ("demo_af1", True)])
def test_its_tokenizer_begins_texts_as_the_papers_do(name: str, begins: bool, tmp_path: Path) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    small = shrink(config, "lm", tmp_path)
    write_material(small)
    tokenizer = Tokenizer.load(small.data.tokenizer)
    assert (tokenizer.bos_id is not None) == begins == (config.data.text_style == "af1")
    assert tokenizer.first_added_id + tokenizer.num_added <= small.model.lm.vocab


def test_captions_for_who_compares_them(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.yaml")
    dataset = DatasetConfig(manifest="a.jsonl", neighbours=NeighboursConfig(of="b"))
    small = shrink(replace(config, data=replace(config.data, datasets={"scenes": dataset})), "clap", tmp_path)
    write_material(small)
    rows = list(Manifest(Path(small.data.root) / "scenes.jsonl"))
    assert all(len(row.clips) == 1 and row.captions for row in rows) and any(row.negatives for row in rows)
