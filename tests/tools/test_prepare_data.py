"""The command from somebody's table to prepared shards, and its exit statuses."""

from pathlib import Path

import pytest
import soundfile
import yaml

from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from tests.data.toy import write_tone
from tests.text.toy_tokenizer import toy_base
from tools.prepare_data import main

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i in range(6):
        write_tone(root / "wavs" / f"{i}.wav", 1.0, i)
    (root / "t.csv").write_text("file,text\n" + "".join(f"{i}.wav,sound number {i}\n" for i in range(6)))
    toy_base().save(str(root / "tokenizer.json"))
    origin = {"format": "csv", "path": "t.csv", "audio": "wavs", "columns": {"audio": "file", "caption": "text"}}
    data = {
        "root": str(root),
        "tokenizer": str(root / "tokenizer.json"),
        "prepare": {"workers": 1, "rows_per_shard": 4},
        "datasets": {"a": {"manifest": "prepared/a", "source": "a.jsonl", "origin": origin}},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"name": "c", "data": data, "model": {"front_end": {"window_seconds": 1.0}}}))
    return path


def test_import_prepare_stats_inspect(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--config", str(config)]) == 0
    assert "a: 6 of 6 rows imported" in capsys.readouterr().out
    assert main(["prepare", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "prepare a 6/6 100.0% | 0 left out | eta 0:00" in out and "6 of 6 rows prepared" in out
    assert len(open_rows(DataRoot(str(tmp_path / "data")), "prepared/a")) == 6
    assert main(["stats", "--config", str(config)]) == 0
    assert "a: 6 rows" in capsys.readouterr().out
    page = tmp_path / "a.html"
    assert main(["stats", "--config", str(config), "--html", str(page)]) == 0
    assert page.read_text().count("data:image/png") == 1 and "<audio" not in page.read_text()
    assert main(["inspect", "--config", str(config), "--dataset", "a", "--samples", "2", "--html", str(page)]) == 0
    assert page.read_text().count("<audio") == 2
    assert main(["lint", "--config", str(config), "data.datasets.a.merits.size=very_large"]) == 0
    assert capsys.readouterr().out.endswith("set it to small\n1 warnings; 1 of 1 data sets have merits\n")


def test_too_many_bad_rows_fail(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", "--config", str(config)])
    soundfile.write(tmp_path / "data/wavs/0.wav", [0.0] * 16_000, 16_000)
    assert main(["prepare", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "5 of 6 rows prepared" in out and "silent: 1" in out and "max_bad_fraction is 5.0%" in out
    again = main(["prepare", "--config", str(config), "data.prepare.max_bad_fraction=0.5"])
    assert again == 0 and "already prepared" in capsys.readouterr().out


def test_an_import_that_leaves_too_much_out_fails(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/wavs/0.wav").unlink()
    assert main(["import", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "a: 5 of 6 rows imported" in out and "missing: 1" in out and "16.7% left out" in out
    assert "wavs/0.wav does not exist" in (tmp_path / "data/a.left_out.jsonl").read_text()
    assert main(["import", "--config", str(config), "data.prepare.max_bad_fraction=0.2"]) == 0


def test_mistakes_are_one_message(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--config", str(config), "--dataset", "b"]) == 2
    assert "data.datasets has a" in capsys.readouterr().err
    assert main(["prepare", "--config", str(config), "data.rot=x"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["prepare", "--config", str(config)]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["import", "--config", str(config), "data.datasets.a.origin=null"]) == 0
    assert "nothing to import" in capsys.readouterr().out
