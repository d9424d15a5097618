"""What is heard and seen of a recording is what the model hears."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from matplotlib.image import imread

from megatron_af.config import Config
from megatron_af.data.rows import Clip
from megatron_af.inference.looks import Look
from megatron_af.report.sounds import Sounds, attention_image
from tests.data.toy import write_tone

LOOK = Look(
    prompt="?", tokens=("a", "b"), seconds=2.0, token_seconds_L=np.tile([0.0, 0.5], 2),
    weights_TL=np.array([[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.0, 0.5]]),
)  # fmt: skip


def test_the_player_plays_what_is_heard(run: Config) -> None:
    root = Path(run.data.root)
    write_tone(root / "five.wav", 5.0, 1)
    with Sounds(run) as sounds:
        html = sounds.player(Clip(path="five.wav", duration=5.0, start=1.0))
        gone = sounds.player(Clip(path="<gone>.wav", duration=1.0))
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(re.findall(r"data:audio/mpeg;base64,([^\"]+)", html)[0])))
    assert rate == 16_000 and abs(len(wave) / rate - 2.0) < 0.1, "two windows of a second"
    assert "&lt;gone&gt;.wav cannot be played" in gone and "<audio" not in gone


def test_a_rate_that_mp3_lacks_is_played_at_the_nearest(run: Config) -> None:
    front = replace(run.model.front_end, sample_rate=20_000)
    write_tone(Path(run.data.root) / "odd.wav", 1.0, 1, rate=20_000)
    with Sounds(replace(run, model=replace(run.model, front_end=front))) as sounds:
        html = sounds.player(Clip(path="odd.wav", duration=1.0))
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", html)[0])))
    assert rate == 22_050 and abs(len(wave) / rate - 1.0) < 0.1


def test_tokens_of_one_moment_add_up_and_each_line_has_its_own_highest() -> None:
    picture = attention_image(LOOK)
    assert picture.shape == (2, 2, 4)
    np.testing.assert_allclose(picture[..., 3], [[0.4 / 0.6, 1.0], [0.0, 1.0]], rtol=1e-6)


def test_mel_windows_and_attention_share_a_time_line(run: Config) -> None:
    """A click in the second window is in the second half of the mel, high in neither; the border is in the middle."""
    wave = np.zeros(32_000, np.float32)
    wave[24_000:24_160] = 0.9
    soundfile.write(Path(run.data.root) / "click.wav", wave, 16_000)
    with Sounds(run) as sounds:
        html = sounds.heard(Clip(path="click.wav", duration=2.0), LOOK)
    assert re.findall(r'class="window" style="left:([\d.]+)%', html) == ["50.000"]
    assert html.count('class="now"') == 2 and 'data-seconds="2.0"' in html and "height:44px" in html
    mel, looks = (
        imread(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/png;base64,([^\"]+)", html)
    )
    brightness = mel[..., :3].sum((0, 2))
    assert abs(brightness.argmax() / len(brightness) - 0.75) < 0.03
    assert looks.shape == (2, 2, 4)
