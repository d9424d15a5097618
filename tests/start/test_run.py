"""The whole way on a folder of tones, with hardly any training: what it learns is nothing; docs say what it reaches."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config
from megatron_af.files import write
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.pipeline.job import StepFailed
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.start.run import slug, start
from megatron_af.text.tokenizer import Tokenizer, read_tokenizer
from megatron_af.text.words import extend
from megatron_af.train.checkpoint_reading import load_parts
from tests.data.toy import write_tone
from tests.distributed import run_distributed
from tests.trained_run import trained_run
from tools.start import main

SMALL = [
    "model.encoder.embed_dim=16", "model.encoder.depths=[1,1]", "model.encoder.heads=[2,2]",
    "launch.processes_per_node=1",
    "model.transform.heads=2", "model.transform.ffn=64", "model.lm.hidden=64", "model.lm.ffn=96",
    "curriculum.clap.steps=2", "curriculum.answer.steps=2",
    *(f"curriculum.{stage}.{key}_samples={size}" for stage in ("clap", "answer")
      for key, size in (("global_batch", 4), ("micro_batch", 2))),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("high", "low"):
        for take in range(12):
            write_tone(tmp_path / "My Sounds" / label / f"{take}.wav", 0.3 + 0.01 * take, len(label) * 20 + take)
    return tmp_path / "My Sounds"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_a_folder_to_answers_and_once_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), *SMALL]) == 0
    told = capfd.readouterr().out
    assert "a folder for each label: high, low" in told and "24 rows" in told and "2 classes, 12 (" in told
    assert "always saying the commonest is right 50% of the time" in told
    assert "answer: held-out recordings of test" in told and "classes of test by their names alone" in told
    config = load_config("data/my-sounds/my-sounds.yaml")
    assert config.model.front_end.window_seconds == 1.0 and list(config.curriculum) == ["clap", "answer"]
    run = tmp_path / "runs/my-sounds"
    assert json.loads((run / "answer/hearing.json").read_text())["test"]["overall"]["n"] == 4
    written = (tmp_path / "data/my-sounds/my-sounds.yaml").stat().st_mtime_ns
    checkpoints = {file: file.stat().st_mtime_ns for file in run.rglob("checkpoint.json")}
    assert main([str(folder), *SMALL]) == 0
    told = capfd.readouterr().out
    assert "which is there already" in told
    assert (tmp_path / "data/my-sounds/my-sounds.yaml").stat().st_mtime_ns == written
    assert {file: file.stat().st_mtime_ns for file in run.rglob("checkpoint.json")} == checkpoints
    assert (run / "report.html").stat().st_size > 10_000 and "look and listen: runs/my-sounds/report.html" in told

    folder.rename(tmp_path / "others")
    assert main([str(tmp_path / "others"), "--from", "runs/my-sounds", *SMALL]) == 0
    source = sorted((run / "answer/checkpoints").glob("step_*"))[-1].relative_to(tmp_path)
    told = capfd.readouterr().out
    assert f"runs/my-sounds: begins with encoder, transform, xattn, lm, rows of {tmp_path / source}" in told
    assert f"begins with clap of {tmp_path / 'runs/my-sounds/clap/checkpoints'}" in told, "there is no new word"
    digest = checkpoint_digest(source)
    for stage, parts in (("clap", ["encoder"]), ("answer", ["transform", "xattn", "lm", "rows"])):
        begun = json.loads((tmp_path / f"runs/others/{stage}/stage.json").read_text())["inputs"]
        assert [begun[f"parent/{part}"] for part in parts] == [digest] * len(parts)
    config = load_config("data/others/others.yaml")
    assert config.model == replace(load_config("data/my-sounds/my-sounds.yaml", SMALL).model, lm=config.model.lm)

    written = sorted((tmp_path / "runs/others").rglob("*"))
    for label in ("a low one", "a high one", "one in the middle"):
        for take in range(3):
            write_tone(tmp_path / "others" / label / f"{take}.wav", 0.3, len(label) * 20 + take)
    with pytest.raises(ConfigError, match=r"max_text_tokens = \d+: (\d+) of \1 questions are longer, up to \d+"):
        start(tmp_path / "others", SMALL)
    assert sorted((tmp_path / "runs/others").rglob("*")) == written


def loads(rank: int, world_size: int, config: Config) -> list[str]:
    """Parts whose weights the first answers would begin with."""
    groups = process_groups.initialize(config.parallel, config.seed)
    stage, tokenizer = config.curriculum["answer"], Tokenizer.load(config.data.tokenizer)
    model = spec_of(stage).build(replace(config, stage="answer"), tokenizer, current_device(), ())
    for part, at in stage.entry.items():
        if at != "clap":
            load_parts(model, groups, Path(at), [part])
    return [part for part, at in stage.entry.items() if at != "clap"]


@pytest.mark.slow
def test_what_was_trained_fits_behind_its_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "before").mkdir()
    before = trained_run(tmp_path / "before")
    start(folder, ["launch.processes_per_node=1"], dry_run=True, origin=before.stage_folder("stage"))
    told = capfd.readouterr().out
    assert f"begins with encoder, transform, xattn, lm, rows of {before.stage_folder('stage')}" in told
    assert "not taken: clap: its text tower has no rows for" in told
    written = tmp_path / "written.yaml"
    written.write_text(told[told.index("# Written by") : told.index("\nstage clap: ")])
    config = load_config(written)
    words = tmp_path / "tokenizer.json"
    base, new = extend(read_tokenizer(Path(before.data.tokenizer)), ["high low"])
    base.save(str(words))
    config = replace(config, data=replace(config.data, tokenizer=str(words)))
    assert new == ["high", "low"] and config.model.lm.vocab > before.model.lm.vocab
    assert run_distributed(loads, 1, config, timeout=240) == [["transform", "xattn", "lm", "rows"]]


def test_a_dry_run_shows_settings_and_times_and_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    start(folder, SMALL, dry_run=True)
    told = capsys.readouterr().out
    assert (
        "front_end: {window_seconds: 1} #" in told and "stage clap: 2 steps, about" in told and "in all about" in told
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_too_little_is_refused_before_anything_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for take in range(3):
        write_tone(tmp_path / "few" / f"dog_{take}.wav", 0.3, take)
    with pytest.raises(ConfigError, match=r"(?s)/few is not enough.*3 recordings can be used; 20 are the fewest"):
        write_table(tmp_path / "few")
        start(tmp_path / "few")
    assert not (tmp_path / "runs").exists()


def test_two_folders_of_a_name_do_not_take_turns_in_one_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings of the second would be trained with the first one's settings, in the place of its results."""
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "data/my-sounds/my-sounds.yaml"
    write(settings, "name: my-sounds\n")
    (settings.parent / "recordings").symlink_to(folder)
    other = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, other)
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=rf"my-sounds.yaml is of {folder}: give this .* name=my-sounds-2"):
            start(other, dry_run=dry_run)
    assert (settings.parent / "recordings").resolve() == folder
    start(other, ["name=my-sounds-2", *SMALL], dry_run=True)
    shutil.rmtree(folder)  # moved: the same recordings go on where they were
    with pytest.raises(ConfigError) as told:
        start(other)
    assert "is of" not in str(told.value) and (settings.parent / "recordings").resolve() == other


def test_more_may_be_left_out_before_there_are_settings_that_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["file,caption"]
    for take in range(24):
        write_tone(tmp_path / "said" / f"{take}.wav", 0.3, take)
        lines.append(f"{take}.wav,{f'tone {take} of many' if take > 1 else ''}")
    write(tmp_path / "said/said.csv", "\n".join(lines) + "\n")
    with pytest.raises(StepFailed, match="too much could not be used, such as line 2: no caption: caption is empty"):
        start(tmp_path / "said", SMALL, dry_run=True)
    start(tmp_path / "said", [*SMALL, "data.prepare.max_bad_fraction=0.1"], dry_run=True)
    assert "all: 22 of 24 rows imported" in capsys.readouterr().out


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_name_that_mlflow_refuses_is_refused_before_anything_is_read(tmp_path: Path, dry_run: bool) -> None:
    with pytest.raises(ConfigError, match="name = 'af2:3b'"):
        start(tmp_path / "nothing", ["name=af2:3b"], dry_run=dry_run)


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("place", ["data/my-sounds", "data/my-sounds/data/my-sounds"])
def test_nothing_is_written_among_the_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, dry_run: bool
) -> None:
    """Without ``data.root=`` the recordings in data/NAME would be joined by what is made of them."""
    monkeypatch.chdir(tmp_path)
    write_tone(tmp_path / "data/my-sounds" / "dog_1.wav", 0.3, 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=rf"data.root = {place} lies in it, .* data.root=.*/data/my-sounds-data"):
        start(Path("data/my-sounds"), [] if place == "data/my-sounds" else [f"data.root={place}"], dry_run=dry_run)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no sysfs here")
def test_an_output_that_takes_nothing_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="'/sys/megatron-af'"):
        start(tmp_path / "nothing", ["output=/sys/megatron-af"])


def test_recordings_on_both_sides_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for take in range(4):
        write_tone(tmp_path / "mine" / f"{take}.wav", 0.3, take)
    for split, takes in (("train", (0, 1, 2)), ("test", (2, 3))):
        lines = "".join(f"{take}.wav,{'dog' if take % 2 else 'rain'}\n" for take in takes)
        (tmp_path / "mine" / f"{split}.csv").write_text(f"file,label\n{lines}")
    with pytest.raises(ConfigError, match="3 recordings can be used"):
        start(tmp_path / "mine", dry_run=True)
    told = " ".join(capsys.readouterr().out.split())
    assert "train and test share 1 recordings, such as recordings/2.wav: what is measured" in told


def write_table(folder: Path) -> None:
    (folder / "t.csv").write_text("file,label\n" + "".join(f"dog_{take}.wav,dog\n" for take in range(3)))


def test_names_of_runs_are_plain() -> None:
    assert slug(Path("/x/My Sounds (2)")) == "my-sounds-2" and slug(Path("/x/雨")) == "mine"
