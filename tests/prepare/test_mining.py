"""Mining: segments of real video files, the similarity filter, and rows that prepare can read."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from dali_pipes.waves import read_mono
from megatron_af.data.rows import Manifest
from megatron_af.prepare.mining import MiningConfig, cut, deciles, segments, select
from tests.audio.tower import save_tower

ROOT = Path(__file__).parents[2]


def write_video(path: Path, seconds: float, *, sound: bool = True) -> None:
    """A grey video of one frame a second with a tone."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=1)
        picture.width = picture.height = 64
        tone = container.add_stream("aac", rate=16_000) if sound else None
        for _ in range(round(seconds)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        if tone is not None:
            wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16_000)) / 16_000)
            samples = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate = 16_000
            container.mux(tone.encode(samples))
            container.mux(tone.encode())


def job(folder: Path) -> MiningConfig:
    names = ("videos", "segments", "captioned", "output")
    return MiningConfig(root=str(folder), **{name: str(folder / f"{name}.jsonl") for name in names})


def write(path: str, records: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_segments_cover_the_recording_and_drop_a_short_tail():
    config = job(Path())
    assert list(segments(34.0, config)) == [(0.0, 10.0), (10.0, 10.0), (20.0, 10.0), (30.0, 4.0)]
    assert list(segments(32.9, config)) == [(0.0, 10.0), (10.0, 10.0), (20.0, 10.0)]
    assert list(segments(2.0, config)) == []
    assert list(segments(30.0, replace(config, segment_seconds=15.0))) == [(0.0, 15.0), (15.0, 15.0)]


def test_videos_become_rows_whose_audio_can_be_read(tmp_path):
    config = job(tmp_path)
    write_video(tmp_path / "long.mp4", 24.0)
    write_video(tmp_path / "mute.mp4", 12.0, sound=False)
    write(config.videos, [{"path": "long.mp4", "id": "a"}, {"path": "mute.mp4"}, {"path": "missing.mp4"}])
    report = cut(config)
    assert (report.kept, report.dropped) == (3, {"video without sound that can be read": 2})

    captioned = read(config.segments)
    assert [segment["id"] for segment in captioned] == ["a-00000", "a-00001", "a-00002"]
    captioned[0] |= {"visual_caption": "a street", "audio_caption": "a horn sounds"}
    captioned[1] |= {"visual_caption": "a dog barks", "audio_caption": "a dog barks", "caption": "unused"}
    write(config.captioned, captioned)
    report = select(config, lambda a, b: [float(x == y) for x, y in zip(a, b, strict=True)])
    assert report.kept == 1
    assert report.dropped == {"a caption is empty": 1, "the captions of sound and picture agree": 1}
    (row,) = Manifest(Path(config.output))
    assert row.captions == ("a horn sounds",)
    assert row.meta == {"visual_caption": "a street", "caption_similarity": 0.0}
    (clip,) = row.clips
    wave, rate = read_mono(tmp_path / clip.path, start=clip.start, duration=clip.duration)
    assert (len(wave), rate) == (160_000, 16_000)
    assert json.loads(Path(f"{config.output}.report").read_text())["similarity_deciles"][-1] == 1.0


def test_a_written_caption_comes_over_the_captioners(tmp_path):
    config = job(tmp_path)
    segment = {"id": "s", "path": "v.mp4", "start": 0, "duration": 10.0, "visual_caption": "x", "audio_caption": "y"}
    write(config.captioned, [segment | {"caption": "both in one sentence"}])
    select(config, lambda a, b: [0.2])
    assert Manifest(Path(config.output))[0].captions == ("both in one sentence",)
    write(config.captioned, [segment, {"id": "t"}])
    with pytest.raises(ValueError, match=r"captioned\.jsonl:2: the column 'path' is missing"):
        select(config, lambda a, b: [0.2])


def test_deciles_of_few_and_many():
    assert deciles([]) == []
    assert deciles([0.5]) == [0.5] * 11
    assert deciles([i / 100 for i in range(101)]) == [round(i / 10, 4) for i in range(11)]


@pytest.mark.slow
def test_tool_compares_captions_with_a_sentence_encoder(tmp_path):
    (tmp_path / "tower").mkdir()
    save_tower(tmp_path / "tower", "bert")
    config = job(tmp_path)
    segment = {"path": "v.mp4", "start": 0, "duration": 10.0}
    same = {"id": "same", "visual_caption": "a dog barks", "audio_caption": "a dog barks"}
    other = {"id": "other", "visual_caption": "rain falls", "audio_caption": "a dog barks"}
    write(config.captioned, [segment | same, segment | other])
    (tmp_path / "job.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in vars(config).items()))
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "tools/mine_clips.py"), "select", "--config", str(tmp_path / "job.yaml"),
            f"text_model={tmp_path / 'tower'}", "most_similarity=0.999",
        ],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 segments kept" in done.stdout
    assert [row.id for row in Manifest(Path(config.output))] == ["other"]
