"""Features of a step's clips: cached, encoded or both, the values and the device are the same."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_af.audio.encode_ahead import EncodeAhead
from megatron_af.audio.feature_cache import FeatureCache
from megatron_af.audio.features import ClipFeatures, KnownFeatures
from megatron_af.data.batch import HeardClip, StepAudio
from megatron_af.model import AudioFront
from tests import tiny
from tests.data.toy import FRONT_END, open_stream, toy_config
from tests.distributed import run_distributed

CPU = torch.device("cpu")
WINDOWS = (1, 3, 2, 1)
CACHED = {"all": (0, 1, 2, 3), "some": (1, 3), "none": ()}


class Encoder:
    """Two tokens a window, each a function of its mel."""

    tokens_per_window, feature_dim = 2, 3

    def __init__(self) -> None:
        self.windows: list[int] = []

    def encode(self, mel_WFM: Tensor) -> Tensor:
        self.windows.append(len(mel_WFM))
        return mel_WFM[:, :2, :3] * 2

    def get_submodule(self, target: str) -> torch.nn.Module:
        return torch.nn.Module()


def clips() -> list[HeardClip]:
    return [
        HeardClip(digest=lambda i=i: f"d{i}", start=0.0, duration=1.0, windows=n)  # type: ignore[misc]
        for i, n in enumerate(WINDOWS)
    ]


def audio(known: Any, mel_WFM: Tensor | None) -> StepAudio:
    return StepAudio(
        clip_windows=WINDOWS, owners=(tuple(range(len(WINDOWS))),), mel_WFM=mel_WFM, known=known, seconds=1.0
    )


@pytest.mark.parametrize("cached", CACHED)
def test_what_is_cached_is_not_encoded_and_equals_what_would_be(tmp_path: Path, cached: str) -> None:
    torch.manual_seed(0)
    mels = [torch.randn(n, 4, 5) for n in WINDOWS]
    expected = torch.cat(mels)[:, :2, :3] * 2
    cache = FeatureCache(tmp_path, FRONT_END, "e", "fp32")
    keys = [cache.key(clip.digest(), clip.start, clip.duration, clip.windows) for clip in clips()]
    cache.store([keys[i] for i in CACHED[cached]], [mels[i][:, :2, :3] * 2 for i in CACHED[cached]])
    cache.flush()
    encoder = Encoder()
    features = ClipFeatures(encoder, CPU, torch.float32, cache)
    known = features.look_up(clips())
    assert known.missing == [i for i in range(4) if i not in CACHED[cached]]
    wanted = [mels[i] for i in known.missing]
    got = features(audio(known, torch.cat(wanted) if wanted else None), WINDOWS)
    assert torch.equal(got, expected)
    assert encoder.windows == ([sum(map(len, wanted))] if wanted else [])
    features.close()
    assert all(feature is not None for feature in cache.lookup(keys)), "new features were not kept"


def test_what_could_not_be_decoded_is_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, FRONT_END, "e", "fp32")
    features = ClipFeatures(Encoder(), CPU, torch.float32, cache)
    known = features.look_up(clips()).without([1])
    features(audio(known, torch.randn(sum(WINDOWS), 4, 5)), WINDOWS)
    features.close()
    assert features.look_up(clips()).missing == [1]


def test_without_a_cache_no_recording_is_read_for_its_digest() -> None:
    def read() -> str:
        raise AssertionError("read")

    features = ClipFeatures(Encoder(), CPU, torch.float32)
    known = features.look_up([replace(clip, digest=read) for clip in clips()])
    assert known.missing == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("trains", "folder", "kept"), [(False, "cache", True), (True, "cache", False), (False, "", False)]
)
def test_only_a_frozen_encoder_has_a_cache(tmp_path: Path, trains: bool, folder: str, kept: bool) -> None:
    config = tiny.config()
    config = replace(config, data=replace(config.data, feature_cache=folder and str(tmp_path / folder)))
    front = AudioFront(config, tiny.VOCABULARY)
    front.encoder.requires_grad_(False)
    front.encoder.norm.requires_grad_(trains)
    features = ClipFeatures.of(config, front, CPU)
    assert any(features.look_up(clips()).keys) == kept
    features.close()


def test_a_rank_without_clips_has_features_of_no_window() -> None:
    nothing = StepAudio(clip_windows=(1,), owners=((), (0,)), mel_WFM=None, seconds=1.0)
    assert ClipFeatures(Encoder(), CPU, torch.float32)(nothing, []).shape == (0, 2, 3)


def step_on_a_stand_in(rank: int, world_size: int, cached: str) -> None:
    """Fake tensors on ``meta`` refuse to be mixed with tensors on the CPU, as a GPU's do."""
    with torch.device("meta"):
        front = AudioFront(tiny.config(), tiny.VOCABULARY)
    front.encoder.requires_grad_(False)
    with functorch_config.patch(fake_tensor_allow_meta=True), FakeTensorMode(allow_non_fake_inputs=True):
        found = [
            torch.randn(n, front.tokens_per_window, front.feature_dim) if i in CACHED[cached] else None
            for i, n in enumerate(WINDOWS)
        ]
        known = KnownFeatures(keys=("",) * len(WINDOWS), found=tuple(found))
        fresh = sum(WINDOWS[i] for i in known.missing)
        mel_WFM = torch.randn(fresh, 1001, 64, device="meta") if fresh else None
        groups: Any = SimpleNamespace(model=None, model_size=1, model_rank=0)
        ddp: Any = SimpleNamespace(module=front)
        device = torch.device("meta")
        ahead = EncodeAhead(ddp, groups, device, ClipFeatures(front, device, torch.float32))
        (first, second) = ahead.forward(audio(known, mel_WFM), [((0, 1), (3,)), ((2,), ())])
        for keys in (first, second):
            assert keys.tokens_LBD.device.type == "meta"
            keys.tokens_LBD.square().sum().backward()
        ahead.backward()
        gradient = front.transform.layers[0].query.weight.grad
        assert gradient is not None and gradient.device.type == "meta"


@pytest.mark.slow
@pytest.mark.parametrize("cached", CACHED)
def test_encode_ahead_runs_on_a_stand_in_accelerator(cached: str) -> None:
    """Cached features come from the host, those of fresh clips are made on the device."""
    # In a process of its own: a backward pass on a device starts threads of autograd, behind which nobody can fork.
    run_distributed(step_on_a_stand_in, 1, cached)


def test_the_stream_makes_mel_only_of_what_the_encoder_wants(tmp_path: Path) -> None:
    config = toy_config(tmp_path)

    def open_features(digest: str = "e") -> ClipFeatures:
        return ClipFeatures(Encoder(), CPU, torch.float32, FeatureCache(tmp_path / "cache", FRONT_END, digest, "fp32"))

    first = open_features()
    stream = open_stream(config, encoder_side=first)
    whole = stream.batch(0).audio
    stream.close()
    assert isinstance(whole.known, KnownFeatures) and whole.known.missing == list(range(len(whole.clip_windows)))
    # every second clip is spoiled, so that the others alone are kept
    odd = list(range(1, len(whole.clip_windows), 2))
    expected = first(replace(whole, known=whole.known.without(odd)), whole.clip_windows)
    first.close()
    second = open_features()
    stream = open_stream(config, encoder_side=second)
    again = stream.batch(0).audio
    stream.close()
    assert isinstance(again.known, KnownFeatures) and again.known.missing == odd
    assert whole.mel_WFM is not None and again.mel_WFM is not None
    mels = whole.mel_WFM.split(list(whole.clip_windows))
    assert torch.equal(again.mel_WFM, torch.cat([mels[i] for i in odd]))
    assert torch.equal(second(again, again.clip_windows), expected)
    changed = open_stream(config, encoder_side=open_features("changed encoder"))
    known = changed.batch(0).audio.known
    changed.close()
    assert isinstance(known, KnownFeatures) and known.missing == list(range(len(whole.clip_windows)))


def test_a_recording_that_goes_away_is_silent_and_told_of_with_a_cache_too(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    features = ClipFeatures(Encoder(), CPU, torch.float32, FeatureCache(tmp_path / "cache", FRONT_END, "e", "fp32"))
    stream = open_stream(config, encoder_side=features)
    stream.pause()
    batch = stream.make(0)
    whole = batch.audio
    recordings = sorted((tmp_path / "data/a").glob("*.wav"))  # a/3-0.wav is of the row a-3
    next(path for path in recordings if f"a-{path.stem.split('-')[0]}" in batch.sample_ids).unlink()
    again = stream.make(0).audio
    stream.close()
    assert isinstance(again.known, KnownFeatures) and again.known.keys.count("") == 1
    assert again.clip_windows == whole.clip_windows and again.mel_WFM is not None
    silent = again.mel_WFM.split(list(again.clip_windows))[again.known.keys.index("")]
    assert silent.max() < -99.99
    assert "silenced" in (config.stage_folder(config.stage) / "replaced.jsonl").read_text()
