"""Figures of speed: each stage, block, goal and time is drawn where it belongs."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from jepa_lab import plots, speed_plots
from jepa_lab.speed_plots import FORMS


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield


def keys(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def boxes(ax, color):
    """(x, y, width, height) of the rectangles of a colour."""
    wanted = plt.matplotlib.colors.to_rgba(color)
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in ax.patches if p.get_facecolor() == wanted]


def test_a_profile_in_milliseconds_from_its_start():
    stages = [("forward pass", 10.0, 10.006), ("EMA", 10.006, 10.0062), ("backward", 10.0062, 10.01)]
    operations = [("copies", 10.0, 10.001), ("products", 10.001, 10.004), ("products", 10.007, 10.009)]
    fig = speed_plots.timeline(stages, operations)
    (ax,) = fig.axes
    spans = [np.array(path.vertices) for bar in ax.collections for path in bar.get_paths()]
    left = [round(float(v[:, 0].min()), 6) for v in spans]
    right = [round(float(v[:, 0].max()), 6) for v in spans]
    # the three stages, then the kinds, the most costly first
    assert left == pytest.approx([0, 6, 6.2, 1, 7, 0])
    assert right == pytest.approx([6, 6.2, 10, 4, 9, 1])
    assert keys(fig) == ["products", "copies"]
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert heights["forward\npass"] == heights["backward"] < heights["EMA"]  # too narrow for its label
    with pytest.raises(ValueError, match="got 0 stages"):
        speed_plots.timeline([], operations)
    with pytest.raises(ValueError, match="9 kinds"):
        speed_plots.timeline(stages, [(str(i), 0.0, 1.0) for i in range(9)])


def test_pieces_of_a_bar_stand_on_each_other():
    one, other = {"a": {"x": 1.0, "y": 2.0}, "b": {"y": 4.0}}, {"a": {"z": 1.0}, "b": {"z": 1.0}}
    fig = speed_plots.stacked({"ms": one, "share": other})
    bars = [(round(p.get_x(), 6), round(p.get_width(), 6)) for p in fig.axes[0].patches]
    assert bars == [(0, 1), (0, 0), (1, 2), (0, 4)]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["a", "b"]
    assert fig.axes[0].yaxis_inverted()
    with pytest.raises(ValueError, match="same rows"):
        speed_plots.stacked({"ms": one, "share": {"a": {}}})


def test_goals_reached_and_not():
    rows = [
        {"what": "loss", "ratio_median": 7.0, "ratio_q1": 6.5, "ratio_q3": 7.5, "floor": 6.0, "aim": 8.0, "limit": 9.0},
        {"what": "mask", "ratio_median": 2.0, "ratio_q1": 1.5, "ratio_q3": 2.5, "floor": 3.0, "aim": 5.0},
    ]
    fig = speed_plots.goals(rows)
    (ax,) = fig.axes
    shown = {line.get_label(): np.array(line.get_data()).T.tolist() for line in ax.get_lines()}
    assert shown["measured"] == [[7, 0], [2, 1]] and shown["floor"] == [[6, 0], [3, 1]]
    assert shown["aim"] == [[8, 0], [5, 1]] and shown["limit"] == [[9, 0]]
    assert [[6.5, 0], [7.5, 0]] in shown.values()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["loss", "mask"]
    assert ax.get_xlim()[1] > 9 and ax.get_xscale() == "log"
    assert "limit" not in keys(speed_plots.goals(rows[1:]))
    with pytest.raises(ValueError, match="no goal"):
        speed_plots.goals([])


def test_time_and_memory_over_the_batch():
    def row(n):
        ms = {"dense": 2.0 * n, "fused": 1.0 * n, "limit": 0.5 * n}
        return {
            "rows": n,
            "times": {form: {"median_ms": value} for form, value in ms.items()},
            "peak_bytes": {"dense": 2**20 * n, "fused": 2**18 * n},
        }

    fig = speed_plots.over_batch({"a loss": [row(2), row(4)], "another": [row(2), row(4)]})
    above, below = fig.axes[0], fig.axes[2]
    assert {line.get_label(): line.get_ydata().tolist() for line in above.lines} == {
        "dense": [4, 8],
        "fused": [2, 4],
        "limit": [1, 2],
    }
    assert [line.get_ydata().tolist() for line in below.lines] == [[2, 4], [0.5, 1]]  # MiB
    assert [line.get_color() for line in below.lines] == [FORMS["dense"], FORMS["fused"]]
    assert keys(fig) == ["dense", "fused", "limit"]
    with pytest.raises(ValueError, match="no loss"):
        speed_plots.over_batch({})


def test_blocks_and_their_mirror_images_cover_the_matrix_once():
    a, b = slice(0, 3), slice(3, 6)  # of 5 rows: the last block is cut
    fig = speed_plots.pair_blocks(5, [(a, a), (a, b), (b, b)], {"dense": 4.0, "fused": 1.0})
    left, right = fig.axes
    assert boxes(left, FORMS["fused"]) == [(0, 0, 3, 3), (3, 0, 2, 3), (3, 3, 2, 2)]
    assert boxes(left, "#CFE3F1") == [(0, 3, 3, 2)]
    assert left.get_title(loc="left") == "3 blocks: 76% of the matrix"  # 19 of 25
    assert [p.get_width() for p in right.patches] == [4, 1]
    with pytest.raises(ValueError, match="above the diagonal"):
        speed_plots.pair_blocks(5, [(b, a)], {"dense": 4.0})


def test_rates_stand_at_their_objective():
    fig = speed_plots.rates({"core": {"slow": 10.0, "fast": 100.0}, "gpu": {"fast": 5000.0}})
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["fast", "slow"]
    core, gpu = (line.get_xdata() for line in ax.lines)
    assert list(core) == [100.0, 10.0] and gpu[0] == 5000.0 and gpu[1] is None
    assert keys(fig) == ["core", "gpu"] and ax.get_xscale() == "log"
    with pytest.raises(ValueError, match="got 0"):
        speed_plots.rates({})
