"""A clip in views: where they begin, and that both ways of making mel see the same of it."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from dali_pipes.mel import MelPipeline, Pcm
from dali_pipes.views import view_starts, views
from megatron_af.config import FrontEndConfig
from tests.dali_pipes.mels import broadband, pipeline
from tests.dali_pipes.reference import reference_mel

__all__ = ["pipeline"]
FRONT = FrontEndConfig(window_seconds=1.0, short_clips="repeat_whole", long_clips="views", max_hz=7_000)
WINDOW = FRONT.window_frames


def test_a_window_begins_in_the_middle_of_each_third() -> None:
    assert view_starts(10 + 29, 10) == [5, 15, 25]  # 30 places: 0-9, 10-19, 20-29
    assert view_starts(10 + 3, 10) == [1, 2, 3]  # 0 and 1, then one each
    assert view_starts(10 + 1, 10) == [0, 1, 0]  # the last third is empty


def test_a_clip_of_one_window_has_no_other_view() -> None:
    mel_FM = torch.randn(WINDOW, 64)
    (whole, *parts) = views(mel_FM, WINDOW)
    assert torch.equal(whole, mel_FM) and len(parts) == 3 and all(part.isnan().all() for part in parts)


def test_a_longer_clip_is_shrunk_and_cut() -> None:
    ramp_FM = torch.arange(2.0 * WINDOW)[:, None].expand(-1, 64)
    (whole, *parts) = views(ramp_FM, WINDOW)
    assert torch.allclose(whole, ramp_FM[::2] + 0.5)  # bilinear: halfway between two frames
    for part, start in zip(parts, view_starts(2 * WINDOW, WINDOW), strict=True):
        assert torch.equal(part, ramp_FM[start : start + WINDOW])


def test_views_are_cut_out_of_the_mel_of_the_whole(pipeline: Callable[[FrontEndConfig], MelPipeline]) -> None:
    """Of what three windows would cover; the mel itself is that of one window as long as the clip."""
    seconds = (0.3, 1.0, 1.004, 1.4, 2.77, 5.0)
    waves = [broadband(s, FRONT.sample_rate, i) for i, s in enumerate(seconds)]
    counts = [FRONT.covering(len(wave), 3) for wave in waves]
    assert counts == [1, 1, 2, 2, 3, 3] and {FRONT.num_windows(len(wave), 3) for wave in waves} == {1}
    mel_WVFM = pipeline(FRONT).run([Pcm(wave) for wave in waves], counts)
    assert mel_WVFM.shape == (6, *FRONT.input_shape) == (6, 4, WINDOW, 64)
    for wave, views_VFM in zip(waves, mel_WVFM, strict=True):
        heard = min(max(len(wave), FRONT.sample_rate), 3 * FRONT.sample_rate)
        if len(wave) < heard:
            wave = np.pad(np.tile(wave, heard // len(wave)), (0, heard % len(wave)))
        whole = FrontEndConfig(**{**vars(FRONT), "window_seconds": heard / FRONT.sample_rate, "long_clips": "windows"})
        mel_FM = reference_mel(wave[:heard], whole, 1)[0]
        longer = len(mel_FM) > WINDOW
        assert views_VFM[1:].isnan().all() == (not longer)
        expected = F.interpolate(mel_FM[None, None], (WINDOW, 64), mode="bilinear")[0, 0] if longer else mel_FM
        assert (views_VFM[0] - expected).abs().max() < 0.02
        for part, start in zip(views_VFM[1:] if longer else (), view_starts(len(mel_FM), WINDOW), strict=False):
            assert (part - mel_FM[start : start + WINDOW]).abs().max() < 0.02


def test_no_clips_have_no_views() -> None:
    assert MelPipeline(FRONT, device="cpu", device_id=None, threads=1).run([], []).shape == (0, 4, WINDOW, 64)
