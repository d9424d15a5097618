"""Pictures show what was logged, for runs of any length."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from megatron_af.tracking.pictures import (
    POINTS_KEPT,
    History,
    attention_over_time,
    gates_by_depth,
    loss_curves,
    running_mean,
)


def history(num_steps: int, num_layers: int = 3) -> History:
    history = History()
    for step in range(1, num_steps + 1):
        gates = {f"gate_attn/{layer}": layer * step / num_steps / 10 for layer in range(num_layers)}
        gates |= {f"gate_ffn/{layer}": -0.1 for layer in range(num_layers)}
        history.add(step, {"loss": 3 / step, "loss/clotho": 2 / step, **(gates if step % 10 == 0 else {})})
    return history


def rendered(figure: Figure | None) -> int:
    assert figure is not None
    target = io.BytesIO()
    figure.savefig(target)
    return len(target.getvalue())


def test_a_long_run_is_thinned_evenly() -> None:
    steps, values = history(5 * POINTS_KEPT).series("loss")
    assert len(steps) <= POINTS_KEPT
    assert set(np.diff(steps)) == {8.0}
    np.testing.assert_allclose(values, 3 / steps)


@pytest.mark.parametrize("num_steps", [POINTS_KEPT + 1, 20_000])
def test_what_is_measured_seldom_stays_in_a_long_run(num_steps: int) -> None:
    """The gates of steps 10, 20, …: of every second step, and every fourth, none would be left."""
    steps, values = history(num_steps).series("gate_attn/2")
    assert 100 <= len(steps) <= POINTS_KEPT
    np.testing.assert_allclose(values, 0.2 * steps / num_steps)
    assert len(set(np.diff(steps))) == 1 and steps[-1] >= 0.99 * num_steps
    assert gates_by_depth(history(num_steps)) is not None


def test_layers_are_ordered_by_number() -> None:
    assert history(10, num_layers=12).names("gate_attn/") == [f"gate_attn/{layer}" for layer in range(12)]


def test_loss_curves_show_every_data_set() -> None:
    figure = loss_curves(history(100))
    assert rendered(figure) > 5_000
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["loss", "clotho"]


def test_gates_show_depth_and_time() -> None:
    figure = gates_by_depth(history(100))
    assert rendered(figure) > 5_000
    assert figure is not None
    mesh = figure.axes[0].collections[0].get_array()
    assert mesh.shape == (3, 10)
    np.testing.assert_allclose(mesh[2, -1], 0.2)


def test_nothing_to_draw_is_no_picture() -> None:
    assert loss_curves(History()) is None
    assert gates_by_depth(History()) is None


def test_a_loss_that_is_not_finite_is_drawn_around() -> None:
    broken = history(50)
    broken.add(51, {"loss": float("nan")})
    assert rendered(loss_curves(broken)) > 5_000


def test_the_mean_of_a_curve_passes_over_what_is_not_finite() -> None:
    """A step that is left out has a loss that is none: it is no fall to 0."""
    values = np.full(160, 2.0)
    values[[50, 51, 100]] = np.nan, np.inf, -np.inf
    values[120:126] = np.nan
    mean = running_mean(values)
    np.testing.assert_allclose(mean[np.isfinite(mean)], 2.0)
    assert np.flatnonzero(np.isnan(mean)).tolist() == [123, 124, 125]


def test_attention_adds_what_belongs_to_one_moment() -> None:
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    figure = attention_over_time(weights, ["a", "dog"], 10.0, order=np.array([0.0, 5.0, 0.0, 5.0]))
    np.testing.assert_allclose(figure.axes[0].collections[0].get_array(), [[0.4, 0.6], [0.6, 0.4]])
    assert rendered(figure) > 3_000


@pytest.mark.parametrize("num_keys", [1, 640])
def test_attention_of_any_length(num_keys: int) -> None:
    assert rendered(attention_over_time(np.full((2, num_keys), 1 / num_keys), ["x", "y"], 100.0)) > 3_000
