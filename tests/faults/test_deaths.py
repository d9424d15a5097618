"""An import and a start that die at any change of a file: nothing half-written has a file's name, and
the same command ends as if nothing had been."""

from functools import partial
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, ImportConfig
from megatron_af.prepare.importers import import_dataset
from megatron_af.progress import silent
from megatron_af.start import run
from tests.data.toy import write_tone
from tests.faults.deaths import deaths
from tests.prepare.importing import table

pytestmark = pytest.mark.slow


def files(folder: Path) -> dict[str, bytes]:
    """What stands under names, drafts of writers that died left out; a link counts as what it names."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else str(path.readlink()).encode()
        for path in folder.rglob("*")
        if (path.is_file() or path.is_symlink()) and not path.name.startswith(".")
    }


def imported(folder: Path) -> Config:
    for take in range(3):
        write_tone(folder / f"{take}.wav", 0.3, take)
    table(folder / "a.csv", [{"file": f"{n}.wav", "text": f"caption {n}"} for n in range(4)])
    origin = ImportConfig(format="csv", path="a.csv", columns={"audio": "file", "caption": "text"})
    dataset = DatasetConfig(manifest="prepared/a", source="a.jsonl", origin=origin)
    return Config(name="i", data=DataConfig(root=str(folder), datasets={"a": dataset}))


def test_an_import_that_dies_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    config = imported(tmp_path / "whole")
    import_dataset(config, "a", silent())
    whole = files(tmp_path / "whole")
    assert len(whole["a.jsonl"].splitlines()) == 3
    config = imported(tmp_path / "killed")
    before = files(tmp_path / "killed")
    met = 0
    for met in deaths(partial(import_dataset, config, "a", silent())):
        left = files(tmp_path / "killed")
        assert before.keys() <= left.keys(), f"at change {met}"
        assert all(whole[name] == content for name, content in left.items()), f"at change {met}"
    assert met >= 4 and files(tmp_path / "killed") == whole
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")], "space is given back"


def started(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    run.start(folder)


def test_a_start_that_dies_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the curriculum; recordings are not prepared, for a preparation that is killed has a test of its own."""
    for label in ("high", "low"):
        for take in range(12):
            write_tone(tmp_path / "sounds" / label / f"{take}.wav", 0.3, len(label) * 20 + take)
    for name in ("prepare_recordings", "run_curriculum", "plan", "_tell_results"):
        monkeypatch.setattr(run, name, lambda *_, **__: 0)
    started(tmp_path / "sounds", tmp_path / "whole", monkeypatch)
    whole = files(tmp_path / "whole")
    assert {name.rpartition("/")[2] for name in whole} >= {"sounds.yaml", "tokenizer.json", "all.jsonl", "recordings"}
    met = 0
    for met in deaths(partial(started, tmp_path / "sounds", tmp_path / "killed", monkeypatch)):
        left = files(tmp_path / "killed")
        assert all(whole[name] == content for name, content in left.items()), f"at change {met}"
    assert met >= 10 and files(tmp_path / "killed") == whole
