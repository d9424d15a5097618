"""Imports for tests: one small copy of a layout in, rows and report out."""

import csv
import json
from pathlib import Path

from megatron_af.config import Config, DataConfig, DatasetConfig, ImportConfig
from megatron_af.data.rows import Manifest, Row
from megatron_af.prepare.importers import ImportReport, import_dataset
from megatron_af.progress import silent
from tests.data.toy import write_tone


def run(folder: Path, origin: ImportConfig) -> tuple[list[Row], ImportReport]:
    dataset = DatasetConfig(manifest="prepared/a", source="a.jsonl", origin=origin)
    config = Config(name="i", data=DataConfig(root=str(folder), datasets={"a": dataset}))
    report = import_dataset(config, "a", silent())
    return list(Manifest(folder / "a.jsonl")), report


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def table(path: Path, lines: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def af_manifest(folder: Path, name: str, count: int) -> None:
    data = {str(i): {"name": f"{name}{i}.wav", "prompt": f"p{i}", "output": f"{name} {i}"} for i in range(count)}
    for i in range(count):
        write_tone(folder / "audio" / name / f"{name}{i}.wav", 1.0 + i, i)
    content = {"split": name, "split_path": name, "flamingo_task": "Clotho-v2-AudioCaptioning", "total_num": count}
    dump(folder / f"{name}.json", content | {"data": data})


def problems(folder: Path, report: ImportReport) -> list[str]:
    """What the report says, line by line."""
    return [json.loads(line)["problem"] for line in (folder / report.report).read_text().splitlines()]
