"""Step batches: what they hold, what they do not depend on, and what happens to bad data."""

import json
import re
import threading
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from dali_pipes.mel import MelPipeline, Pcm
from dali_pipes.waves import AudioError, read_wave
from megatron_af.config import StageConfig
from megatron_af.data import clips
from megatron_af.data.batch import StepBatch, TextBatch
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Manifest
from megatron_af.data.sample_source import TooManyReplacements
from megatron_af.data.stream import hear
from megatron_af.parallel.device import Device
from megatron_af.text.tokenizer import Tokenizer
from tests.data.toy import CPU, FRONT_END, open_stream, toy_config, write_manifest
from tests.examples import run_example


def equal(a: StepBatch[TextBatch], b: StepBatch[TextBatch]) -> bool:
    """Same content, audio included."""
    tensors = [
        torch.equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a.text.rows, b.text.rows, strict=True)
        for name in ("ids_BS", "labels_BS", "segment_BS", "first_audio_BS", "last_audio_BS", "dataset_BS")
    ]
    mels = (a.audio.mel_WFM is None) == (b.audio.mel_WFM is None)
    if a.audio.mel_WFM is not None and b.audio.mel_WFM is not None:
        mels = torch.equal(a.audio.mel_WFM, b.audio.mel_WFM)
    return all(tensors) and mels and a.sample_ids == b.sample_ids and a.audio.clip_windows == b.audio.clip_windows


def without_mel(batch: StepBatch[TextBatch]) -> StepBatch[TextBatch]:
    return replace(batch, audio=replace(batch.audio, mel_WFM=None))


def test_a_batch_holds_the_rows_text_and_windows(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    s = open_stream(config)
    batch = s.batch(0)
    s.close()
    rows = {row.id: row for name in "ab" for row in Manifest(tmp_path / "data" / f"{name}.jsonl")}
    tokenizer = Tokenizer.load(config.data.tokenizer)
    assert len(batch.sample_ids) == 8 and [len(r.clips) for r in batch.text.rows] == [2, 2, 2, 2]
    assert len({r.ids_BS.shape[1] for r in batch.text.rows}) == 1 and batch.text.rows[0].ids_BS.shape[1] % 8 == 0
    seen_windows = set()
    for i, sample_id in enumerate(batch.sample_ids):
        row, text, b = rows[sample_id], batch.text.rows[i // 2], i % 2
        written = tokenizer.decode(text.ids_BS[b].tolist(), skip_special=False)
        assert written.count("<SEP>") == 2 and written.count("<audio>") == 2 * len(row.clips)
        assert sum(q.prompt in written for q in row.questions) == 2
        windows = [batch.audio.clip_windows[c] for c in text.clips[b]]
        assert windows == [FRONT_END.num_windows(round(clip.duration * 16_000), 3) for clip in row.clips]
        visible = text.segment_BS[b] >= 0
        last = len(row.clips) - 1
        assert (text.last_audio_BS[b][visible] <= last).all() and text.last_audio_BS[b].max() == last
        assert (text.dataset_BS[b][visible] == "ab".index(sample_id[0])).all()
        for clip, index in zip(row.clips, text.clips[b], strict=True):
            wave = read_wave(tmp_path / "data" / clip.path, start=0, duration=clip.duration, sample_rate=16_000)
            n, begin = batch.audio.clip_windows[index], sum(batch.audio.clip_windows[:index])
            pipe = MelPipeline(FRONT_END, device="cpu", device_id=None, threads=1)
            assert batch.audio.mel_WFM is not None
            assert torch.equal(batch.audio.mel_WFM[begin : begin + n], pipe.run([Pcm(wave)], [n]))
            seen_windows |= set(range(begin, begin + n))
    assert batch.audio.mel_WFM is not None and seen_windows == set(range(len(batch.audio.mel_WFM)))
    assert batch.text.num_tokens == sum(int((r.segment_BS >= 0).sum()) for r in batch.text.rows)


def test_the_thread_that_makes_batches_is_on_the_ranks_own_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its current GPU would be the first one, whatever the process has chosen."""
    there: list[str] = []
    monkeypatch.setattr(Device, "make_current", lambda device: there.append(threading.current_thread().name))
    s = open_stream(toy_config(tmp_path))
    s.batch(0)
    s.close()
    assert there == ["data_0"]


def test_batches_are_a_function_of_the_step_alone(tmp_path: Path) -> None:
    """A resume is a step number: any start, any order, prefetched or not."""
    config = toy_config(tmp_path)
    first = open_stream(config)
    batches = [first.batch(step) for step in range(5)]
    resumed = open_stream(config, start=3)
    assert equal(resumed.batch(3), batches[3]) and equal(resumed.batch(4), batches[4])
    assert equal(resumed.batch(1), batches[1])
    assert not equal(batches[0], batches[1])
    other = open_stream(replace(config, seed=1))
    assert other.batch(0).sample_ids != batches[0].sample_ids
    for s in (first, resumed, other):
        s.close()


@pytest.mark.parametrize("ranks", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_data_parallel_ranks(tmp_path: Path, ranks: int) -> None:
    config = toy_config(tmp_path)
    whole = open_stream(config)
    parts = [open_stream(config, dp=(r, ranks)) for r in range(ranks)]
    for step in (0, 1, 7):
        ids = [i for part in parts for i in part.batch(step).sample_ids]
        assert ids == list(whole.batch(step).sample_ids)
    for s in (whole, *parts):
        s.close()


def test_a_resume_with_other_ranks_and_packing_keeps_each_global_batch(tmp_path: Path) -> None:
    """Stopped in the middle of an epoch on two ranks, continued on one and on four, with other threads."""
    config = toy_config(tmp_path)
    stage = replace(config.curriculum["tune"], pack_tokens=300)
    packed = replace(config, curriculum={"tune": stage}, data=replace(config.data, workers=3))
    before = [open_stream(config, dp=(r, 2)) for r in range(2)]
    expected = [[i for s in before for i in s.batch(step).sample_ids] for step in range(6)]
    for ranks in (1, 4):
        resumed = [open_stream(packed, dp=(r, ranks), start=3) for r in range(ranks)]
        for step in (3, 4, 5):
            assert [i for s in resumed for i in s.batch(step).sample_ids] == expected[step]
        for s in resumed:
            s.close()
    for s in before:
        s.close()


def test_model_parallel_ranks_hold_the_same_text_and_share_the_audio(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    alone = open_stream(config)
    whole = alone.batch(2)
    assert whole.audio.mel_WFM is not None
    mels = whole.audio.mel_WFM.split(list(whole.audio.clip_windows))
    parts = [open_stream(config, mp=(r, 3)) for r in range(3)]
    for rank, part in enumerate(parts):
        batch = part.batch(2)
        assert equal(without_mel(batch), without_mel(whole))
        own = [mels[c] for c in batch.audio.owners[rank]]
        assert (batch.audio.mel_WFM is None) == (not own)
        if own:
            assert batch.audio.mel_WFM is not None and torch.equal(batch.audio.mel_WFM, torch.cat(own))
    for s in (alone, *parts):
        s.close()


def test_only_the_owner_opens_the_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def spy(source: Path, **kwargs: float) -> object:
        read.append(str(source.relative_to(tmp_path / "data")))
        return read_wave(source, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("megatron_af.data.clips.read_wave", spy)
    config = toy_config(tmp_path)
    rows = {row.id: row for name in "ab" for row in Manifest(tmp_path / "data" / f"{name}.jsonl")}
    for rank in range(3):
        s = open_stream(config, mp=(rank, 3))
        s.pause()  # what was made ahead is read by now
        read.clear()
        batch = s.make(0)
        s.close()
        clips = list(dict.fromkeys(clip.path for i in batch.sample_ids for clip in rows[i].clips))
        assert sorted(read) == sorted(clips[c] for c in batch.audio.owners[rank])
        assert 0 < len(read) < len(clips)


def test_a_clip_that_several_samples_use_is_encoded_once(tmp_path: Path) -> None:
    config = toy_config(tmp_path, StageConfig(global_batch_samples=16, micro_batch_samples=16), sizes=(2, 2))
    s = open_stream(config)
    batch = s.batch(0)
    s.close()
    assert len(batch.audio.clip_windows) <= 4 < len([c for row in batch.text.rows[0].clips for c in row])


def test_questions_rotate_over_the_passes(tmp_path: Path) -> None:
    """Two of three questions at a time: after three passes each was asked twice, at any time none twice more often."""
    config = toy_config(tmp_path, StageConfig(global_batch_samples=6, micro_batch_samples=6, questions_per_sample=2))
    s = open_stream(config)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    asked: dict[str, Counter[str]] = defaultdict(Counter)
    for step in range(3 * (12 + 12) // 6):  # three epochs: three passes over a, four and a half over b
        batch = s.batch(step)
        for b, sample_id in enumerate(batch.sample_ids):
            text = tokenizer.decode(batch.text.rows[0].ids_BS[b].tolist())
            asked[sample_id].update(re.findall(r"question (\d)", text))
    s.close()
    assert len(asked) == 20
    for sample_id, counts in asked.items():
        often = [counts[q] for q in "012"]
        assert often == [2, 2, 2] if sample_id.startswith("a") else max(often) - min(often) <= 1
        assert sum(often) % 2 == 0 and sum(often) >= 6


def test_contrastive_stages_get_captions_and_no_text_rows(tmp_path: Path) -> None:
    config = toy_config(tmp_path, StageConfig(objective="contrastive", global_batch_samples=4))
    config = replace(config, data=replace(config.data, max_replaced_fraction=1.0))
    s = open_stream(config)
    batch = s.batch(0)
    s.close()
    assert len(batch.text.captions) == 4
    for sample_id, captions in zip(batch.sample_ids, batch.text.captions, strict=True):
        assert captions.positives == (f"caption {sample_id.split('-')[1]}",)


def test_bad_rows_are_replaced_and_reported_the_same_on_every_rank(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    root = tmp_path / "data"
    rows = list(Manifest(root / "a.jsonl"))
    (root / rows[0].clips[0].path).unlink()
    (root / rows[1].clips[0].path).write_text("not audio")
    lines = (root / "a.jsonl").read_text().splitlines()
    lines[4] = '{"id": "broken"'
    (root / "a.jsonl").write_text("\n".join(lines))
    streams = [open_stream(config, mp=(r, 2)) for r in range(2)]
    for step in range(6):
        batches = [s.batch(step) for s in streams]
        assert batches[0].sample_ids == batches[1].sample_ids
        assert not {"a-0", "a-1", "broken", "a-4"} & set(batches[0].sample_ids)
    for s in streams:
        s.close()
    report = [json.loads(line) for line in (tmp_path / "runs/toy/tune/replaced.jsonl").read_text().splitlines()]
    problems = {entry["row"]: entry["problem"] for entry in report}
    assert set(problems) == {0, 1, 4} and len(report) == 3  # one of the two ranks writes
    assert "cannot be opened" in problems[0] and "a.jsonl:5" in problems[4]


def test_a_tenth_of_damaged_recordings_moves_no_good_sample(tmp_path: Path) -> None:
    whole, config = (toy_config(tmp_path / name, sizes=(40, 40)) for name in ("whole", "damaged"))
    root, bad = tmp_path / "damaged/data", set[str]()
    for name in ("a", "b"):
        rows = [row for row in Manifest(root / f"{name}.jsonl") if row.clips]
        for number, row in enumerate(rows[3::7][:4]):  # 8 of 60
            file = root / row.clips[0].path
            content = file.read_bytes()
            damaged = (b"", b"not audio", content[:20], content[:40])[number]
            file.write_bytes(damaged)
            bad.add(row.id)
    assert len(bad) == 8
    config = replace(config, data=replace(config.data, max_replaced_fraction=1.0))
    right, found = open_stream(whole), open_stream(config)
    for step in range(20):  # 160 samples: each row about twice
        expected, seen = right.batch(step).sample_ids, found.batch(step).sample_ids
        assert not bad & set(seen) and len(seen) == len(expected)
        assert all(one == other for one, other in zip(seen, expected, strict=True) if other not in bad)
    right.close()
    found.close()
    report = (tmp_path / "damaged/runs/toy/tune/replaced.jsonl").read_text().splitlines()
    told = {f"{(entry := json.loads(line))['dataset']}-{entry['row']}" for line in report}
    assert told == bad


def test_audio_that_breaks_while_decoding_is_silence_and_reported(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    root = tmp_path / "data"
    rows = [row for row in Manifest(root / "a.jsonl") if row.clips]
    for row in rows:
        path = root / row.clips[0].path
        wave, rate = soundfile.read(path)
        soundfile.write(path, wave, rate, format="FLAC")
        path.write_bytes(path.read_bytes()[:2000])  # the header still promises everything
    s = open_stream(config)
    batch = s.batch(0)
    s.close()
    silent = [i for i, ids in enumerate(batch.sample_ids) if ids in {row.id for row in rows}]
    report = (tmp_path / "runs/toy/tune/replaced.jsonl").read_text()
    assert silent and all(f'"{batch.sample_ids[i]}"' in report for i in silent) and "silenced: " in report


def test_too_many_replacements_stop_the_run(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    root = tmp_path / "data"
    for wave in root.rglob("*.wav"):
        wave.unlink()
    s = open_stream(config)
    with pytest.raises(TooManyReplacements, match=r"max_replaced_fraction|rows in a row"):
        for step in range(20):
            s.batch(step)
    s.close()


@pytest.mark.parametrize(("allowed", "stops"), [(0.01, True), (0.9, False)])
def test_the_threshold_decides_whether_replacements_stop_a_run(tmp_path: Path, allowed: float, stops: bool) -> None:
    """Two of twelve rows cannot be read; eight replacements are never too many."""
    config = toy_config(tmp_path)
    config = replace(config, data=replace(config.data, max_replaced_fraction=allowed))
    for row in list(Manifest(tmp_path / "data/a.jsonl"))[:2]:
        (tmp_path / "data" / row.clips[0].path).unlink()
    s, steps = open_stream(config), 0
    try:
        for steps in range(40):  # 320 samples, about 23 of them bad
            s.batch(steps)
    except TooManyReplacements as error:
        assert stops and "data.max_replaced_fraction allows 1.0%" in str(error) and "replaced.jsonl" in str(error)
        assert "9 of " in str(error)
    else:
        assert not stops
    s.close()
    report = [json.loads(line) for line in (tmp_path / "runs/toy/tune/replaced.jsonl").read_text().splitlines()]
    assert {(entry["dataset"], entry["row"]) for entry in report} == {("a", 0), ("a", 1)}


def test_unknown_data_sets_and_uneven_batches_are_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    stage = replace(config.curriculum["tune"], blend={"c": 1.0})
    with pytest.raises(ValueError, match=r"stage.blend names c"):
        open_stream(replace(config, curriculum={"tune": stage}))
    with pytest.raises(ValueError, match="multiple of 3 data-parallel"):
        open_stream(config, dp=(0, 3))


def test_given_rows_are_heard_whole_and_nothing_is_replaced(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    rows = list(Manifest(tmp_path / "data" / "a.jsonl"))
    loader = ClipLoader(config, max_windows=3, device=CPU)
    audio, heard = hear(loader, [rows[0], rows[3], rows[2], rows[0]])
    assert [len(clips) for clips in heard] == [1, 0, 2, 1] and heard[0] == heard[3], "a recording is encoded once"
    assert audio.mel_WFM is not None and len(audio.mel_WFM) == sum(audio.clip_windows) and len(audio.clip_windows) == 3
    (tmp_path / "data" / "a" / "0-0.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match="a-0: cannot be heard"):
        hear(loader, rows[:2])
    loader.close()


def test_the_loaders_example_runs(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    rows = Manifest(tmp_path / "data" / "a.jsonl")
    given = list(rows[0].clips)
    names = run_example(clips, config=config, clips=given, folder=config.data.root, current_device=lambda: CPU)
    assert names["bad"] == {} and len(names["mel_WFM"]) == names["loader"].num_windows(given[0])


def test_long_rows_of_text_set_one_length_for_the_step(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    rows = list(Manifest(tmp_path / "data" / "a.jsonl"))
    long = replace(rows[0], questions=(replace(rows[0].questions[0], prompt="x" * 498),))
    write_manifest(tmp_path / "data", "a", [long, *rows[1:]])
    s = open_stream(replace(config, parallel=replace(config.parallel, tensor=3)))
    lengths = {rows.ids_BS.shape[1] for step in range(4) for rows in s.batch(step).text.rows}
    s.close()
    assert max(lengths) == 528 and all(n % 24 == 0 for n in lengths)


def test_questions_that_are_too_long_are_left_out_and_counted_by_data_set(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    rows = list(Manifest(tmp_path / "data" / "a.jsonl"))
    long = replace(rows[0].questions[0], prompt="x" * 1000)
    clip = replace(rows[0], clips=rows[0].clips[:1])
    whole = replace(clip, id="whole", questions=(long, long))
    part = replace(clip, id="part", questions=(long, rows[0].questions[1]))
    examples = replace(
        clip, id="examples", clips=(*rows[2].clips, *clip.clips), questions=(long, *rows[0].questions[:2]),
        template="interleaved",
    )  # fmt: skip
    write_manifest(tmp_path / "data", "a", [whole, part, examples])
    s = open_stream(config)
    counted: Counter[int] = Counter()
    for step in range(3):
        batch = s.batch(step)
        counted += batch.text.too_long
        for place, name in enumerate(batch.sample_ids):
            assert name != "whole"
            heard = batch.text.rows[place // 2].clips[place % 2]
            assert len(heard) == {"part": 1, "examples": 2}.get(name, len(heard)), "a dropped example is not heard"
    s.close()
    report = (tmp_path / "runs/toy/tune/replaced.jsonl").read_text()
    assert "row whole: its question and answer take 1014 tokens, the stage's max_text_tokens is 512" in report
    assert counted.keys() == {0} and counted[0] > 3
    write_manifest(tmp_path / "data", "a", [part])
    s = open_stream(config)
    batches = [s.batch(step) for step in range(3)]
    s.close()
    assert [batch.text.too_long.get(0, 0) for batch in batches] == [b.sample_ids.count("part") for b in batches]


def test_length_buckets_hold_on_any_ranks_and_after_a_resume(tmp_path: Path) -> None:
    """Batches of one length where there are enough rows of it; text and clips as one rank would make them."""
    stage = StageConfig(global_batch_samples=4, micro_batch_samples=1, length_buckets=(1, 2))
    config = toy_config(tmp_path, stage, sizes=(24, 16))
    one = open_stream(config)
    batches = [one.batch(step) for step in range(11)]
    one.close()

    def bucket(batch: StepBatch[TextBatch], place: int) -> int:
        windows = sum(batch.audio.clip_windows[clip] for clip in batch.text.rows[place].clips[0])
        return sum(windows > end for end in (1, 2))

    mixed = sum(len({bucket(batch, place) for place in range(4)}) > 1 for batch in batches)
    assert mixed <= 5 and len({bucket(batch, 0) for batch in batches}) > 1
    for step in (7, 3):
        shares = []
        for rank in range(2):
            half = open_stream(config, dp=(rank, 2), start=step)
            shares.append(half.batch(step).sample_ids)
            half.close()
        assert (*shares[0], *shares[1]) == batches[step].sample_ids
