"""A page is one file; what it plays and shows is what was put in."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure
from matplotlib.image import imread

from megatron_af.web_page import image, page, picture, sound


def inside(html: str) -> tuple[str, io.BytesIO]:
    kind, data = re.findall(r'src="data:([\w/]+);base64,([^"]+)"', html)[0]
    return kind, io.BytesIO(base64.b64decode(data))


@pytest.mark.parametrize(("form", "kind", "close"), [("FLAC", "audio/flac", 1e-4), ("MP3", "audio/mpeg", 0.1)])
def test_a_sound_is_played_as_it_is(form: str, kind: str, close: float) -> None:
    wave = 0.5 * np.sin(np.arange(16_000) * 0.2).astype(np.float32)
    found, file = inside(sound(wave, 16_000, form))  # type: ignore[arg-type]
    heard, rate = soundfile.read(file)
    assert found == kind and rate == 16_000 and abs(len(heard) - 16_000) < 1_600
    middle = slice(4_000, 12_000)
    assert np.abs(heard[middle] - wave[middle]).max() < close


def test_what_is_too_loud_is_cut_and_not_wrapped() -> None:
    heard, _ = soundfile.read(inside(sound(np.full(1_000, 1.7, np.float32), 16_000))[1])
    assert heard.min() > 0.99


def test_mp3_says_which_rates_it_holds() -> None:
    with pytest.raises(ValueError, match=r"16000.* got 20000"):
        sound(np.zeros(10, np.float32), 20_000, "MP3")


def test_an_image_has_its_first_line_on_top() -> None:
    pixels = imread(inside(image(np.array([[0.0, 0.0], [1.0, 1.0]]), 'a "mel"'))[1])
    assert pixels.shape[:2] == (2, 2) and pixels[0, 0, :3].sum() < pixels[1, 0, :3].sum()
    assert 'alt="a &quot;mel&quot;"' in image(np.zeros((1, 1)), 'a "mel"')
    assert inside(picture(Figure(figsize=(1, 1)), "x"))[0] == "image/png"


def test_a_page_names_itself_and_follows_the_reader() -> None:
    text = page("a < b", ["<p>x</p>"], ".own {}", "let y = 1")
    assert "<title>a &lt; b</title>" in text and "<p>x</p>" in text and ".own {}" in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert text.endswith("<script>let y = 1</script></html>\n") and "<script>" not in page("a", [])
