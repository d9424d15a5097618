"""Charts show the numbers that they are given, at their place, and nothing that was written into a name."""

import re

import numpy as np

from megatron_af.report.charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Bar, bars, field_of, lines, matrix, shares


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in path.split())]
        for path in re.findall(r'<polyline[^>]* points="([^"]+)"', svg)
    ]


def test_a_line_lies_at_its_numbers() -> None:
    svg = lines({"loss": (np.array([0.0, 50, 100]), np.array([4.0, 2, 0]))}, "step", "nats")
    (drawn,) = points(svg)
    assert drawn == [(LEFT, TOP), ((LEFT + WIDTH - 6) / 2, (TOP + HEIGHT - BOTTOM) / 2), (WIDTH - 6, HEIGHT - BOTTOM)]
    assert re.findall(r">([\d.]+)</text>", svg) == ["0", "1", "2", "3", "4", "0", "50", "100"]


def test_a_step_without_a_loss_is_left_out_and_a_dashed_line_is_not_smoothed() -> None:
    steps = np.arange(1.0, 201)
    jagged = np.where(steps % 2 == 0, 3.0, 1.0)
    holed = np.where(steps == 5, np.nan, jagged)
    svg = lines({"loss": (steps, holed), "chance": (steps, jagged)}, "step", "nats", dashed=("chance",))
    raw, smooth, chance = points(svg)
    assert len(raw) == len(smooth) == 199 and len(chance) == 200
    heights = [{round(y) for _, y in line[20:]} for line in (smooth, chance)]
    assert max(heights[0]) - min(heights[0]) < 45 < max(heights[1]) - min(heights[1])
    assert 'class="line dashed"' in svg
    assert lines({"loss": (steps, np.full(200, np.nan))}, "step", "nats") == ""


def test_a_field_has_a_cell_for_each_number_and_both_signs() -> None:
    values = np.array([[0.0, -0.5], [0.25, 0.5]])
    svg = field_of(values, ["0", "1"], np.array([1.0, 2.0]), "gates", "step", "layer")
    cells = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]*fill="rgb\(([\d ]+) / ([-\d.]+)\)"', svg)
    assert [(color, float(share)) for _, _, color, share in cells] == [
        ("9 105 218", 0.0), ("9 105 218", 1.0), ("207 34 46", 0.5), ("207 34 46", 1.0),
    ]  # fmt: skip
    assert float(cells[0][1]) > float(cells[2][1]), "the first layer is lowest"
    many = field_of(np.ones((2, 1_000)), ["0", "1"], np.arange(1_000.0), "gates", "step", "layer")
    assert many.count("<rect") == 180 and ">999</text>" in many


def test_bars_shares_and_matrices_tell_their_numbers() -> None:
    drawn = bars([Bar(label="<i>", value=50.0, low=45.0, high=56.5, marks={"commonest": 25.0}, note="of 8")])
    assert 'style="width:50.00%"' in drawn and "left:45.00%;width:11.50%" in drawn and "left:25.00%" in drawn
    assert "&lt;i&gt;" in drawn and "<i>" not in drawn.replace('<i style="background', "")
    cut = shares({"a": 1.0, "b": 3.0}, {"a": "1 s", "b": "3 s"})
    assert "width:25.00%" in cut and "width:75.00%" in cut and "b: 3 s" in cut
    told = matrix(["a", "b"], ["a", "b", "other"], [[3, 1, 0], [0, 0, 0]])
    assert re.findall(r"\((?:in srgb, )?var\(--(\w+)\) (\d+)%", told)[:2] == [("good", "56"), ("bad", "19")]
