"""A page that is one file: its style, its pictures and its sounds lie inside, and nothing is asked of a network.

    text = page("my run", [f"<h1>{escape('my run')}</h1>", image(mel), sound(wave_T, 16_000)])

Light or dark as the reader's system is, and as wide as a phone. Everything that is not made here is escaped by whoever
puts it in.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, Literal

import numpy as np
import soundfile
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1f2328; --faint: #656d76; --line: #d8dee4; --plane: #f6f8fa;
  --good: #1a7f37; --bad: #cf222e; --accent: #0969da;
  --c0: #1f2328; --c1: #0969da; --c2: #bc4c00; --c3: #1a7f37; --c4: #8250df; --c5: #bf3989; --c6: #9a6700;
  --c7: #1b7c83 }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --text: #e6edf3; --faint: #8d96a0; --line: #30363d;
  --plane: #161b22; --good: #3fb950; --bad: #f85149; --accent: #4493f8;
  --c0: #e6edf3; --c1: #58a6ff; --c2: #f0883e; --c3: #3fb950; --c4: #bc8cff; --c5: #f778ba; --c6: #d29922;
  --c7: #39c5cf } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1060px; margin: 0 auto; padding: 1em; color: var(--text);
  background: var(--page); overflow-wrap: anywhere }
h1 { margin: .3em 0 } h2 { margin: 2em 0 .6em; border-top: 1px solid var(--line); padding-top: .8em }
h3 { margin: 1.4em 0 .4em; font-size: 1em } p { margin: .5em 0 } .faint { color: var(--faint) }
img { max-width: 100% } audio { width: 100%; height: 38px; display: block; margin: .4em 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2em .8em .2em 0; text-align: right; vertical-align: top; font-weight: normal }
td:first-child, th:first-child { text-align: left } th { color: var(--faint); border-bottom: 1px solid var(--line) }
code, .text { font: 13px/1.7 ui-monospace, monospace }
.text { white-space: pre-wrap; background: var(--plane); padding: .8em; border-radius: 6px }
"""


def page(title: str, parts: Sequence[str], style: str = "", script: str = "") -> str:
    """One HTML page of these parts, which are HTML already."""
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>\n" + "\n".join(parts) + f"{code}</html>\n"
    )


def sound(wave_T: NDArray[np.float32], rate: int, form: Literal["FLAC", "MP3"] = "FLAC") -> str:
    """A player of samples in -1 to 1 (louder ones are cut); MP3 is a fifth of the size of FLAC, which loses nothing."""
    if form == "MP3" and rate not in MP3_RATES:
        raise ValueError(f"MP3 holds {', '.join(map(str, MP3_RATES))} samples a second, got {rate}")
    file = io.BytesIO()
    if form == "FLAC":
        soundfile.write(file, wave_T, rate, format=form, subtype="PCM_16")
    else:
        soundfile.write(file, wave_T, rate, format=form, compression_level=0.8)
    kind = "flac" if form == "FLAC" else "mpeg"
    return f'<audio controls preload="metadata" src="{_inside(f"audio/{kind}", file.getvalue())}"></audio>'


def picture(figure: Figure, alt: str) -> str:
    """A figure as it was drawn."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return f'<img alt="{escape(alt)}" src="{_inside("image/png", file.getvalue())}">'


def image(pixels_HW: NDArray[Any], alt: str, *, low: float | None = None, high: float | None = None) -> str:
    """Numbers as colours (or, with four values a pixel, as they are), the first line on top."""
    file = io.BytesIO()
    imsave(file, pixels_HW, cmap="magma", vmin=low, vmax=high, format="png")
    return f'<img alt="{escape(alt)}" src="{_inside("image/png", file.getvalue())}">'


def _inside(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
