"""Rows are filtered by a trained stage on two ranks, as it is started on the command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_af.config import DatasetConfig
from megatron_af.config.loading import to_yaml
from megatron_af.data.rows import Clip, Manifest, Row, to_json
from tests.data.toy import write_tone
from tests.trained_run import trained_run
from tools import filter_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_what_is_kept_and_what_is_dropped_make_all(tmp_path: Path) -> None:
    config = trained_run(tmp_path)
    for n in range(3):
        write_tone(tmp_path / f"{n}.wav", 2.0, 10 * n)
    (tmp_path / "again.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    rows = [
        Row(id=name, clips=(Clip(path=f"{name}.wav", duration=2.0),), captions=(f"w{n}",))
        for n, name in enumerate(("0", "1", "2", "again"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    data = dataclasses.replace(config.data, datasets={"all": DatasetConfig(manifest="rows.jsonl")})
    (tmp_path / "c.yaml").write_text(to_yaml(dataclasses.replace(config, data=data)))
    output = tmp_path / "kept.jsonl"
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(str(ROOT / "tools/filter_rows.py"), "--config", str(tmp_path / "c.yaml"), "stage=clap", "--rows", "all"),
            *("--most-alike", "0.999999", "--draw", "2", "--output", str(output)),
        ],
        check=True,
        cwd=ROOT,
    )
    dropped = [json.loads(line) for line in Path(f"{output}.dropped").read_text().splitlines()]
    assert (dropped[0]["id"], dropped[0]["reason"], dropped[0]["like"]) == ("again", "sounds like another", "1")
    assert [entry["reason"] for entry in dropped[1:]] == ["not drawn"]
    kept = {row.id for row in Manifest(output)}
    assert len(kept) == 2 and kept | {entry["id"] for entry in dropped} == {row.id for row in rows}
    report = json.loads(Path(f"{output}.report").read_text())
    assert (report["rows"], report["kept"]) == (4, 2) and len(report["sound_deciles"]) == 11


@pytest.mark.parametrize("arguments", [[], ["--draw", "0"]])
def test_nothing_to_filter_by_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--config", "configs/demo.yaml", "--rows", "train", "--output", str(tmp_path / "x"), *arguments]
    monkeypatch.setattr("sys.argv", ["filter_rows.py", *asked])
    assert filter_rows.main() == 2
    assert "give --least, --most-alike, --most-alike-text or --draw (1 or more)" in capsys.readouterr().err
