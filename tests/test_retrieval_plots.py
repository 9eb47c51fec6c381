"""Figures of retrieval: each source, rank and mean is drawn where it belongs, and what went wrong is seen."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jepa_lab import plots
from jepa_lab.retrieval_plots import BETTER, SAME, WORSE, plot_neighbourhood, plot_rank_bars, plot_recall_rows
from jepa_lab.style import COLORS, figure

POINTS = [[0.0, 0.0], [1.0, 0.0], [2.0, 1.0], [3.0, 1.0], [4.0, -2.0]]
TOPICS = ["a", "b", "a", "c", "d"]


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield


def lines(ax):
    """The points of every labelled line."""
    return {
        line.get_label(): np.array(line.get_data()).T.tolist()
        for line in ax.get_lines()
        if not line.get_label().startswith("_")
    }


def keys(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


# --- neighbourhood
# ------------------------------------------------------------------------------------------------------


def test_every_source_question_prediction_and_ring_has_its_place():
    ax = plot_neighbourhood(
        None, torch.tensor(POINTS), TOPICS, question=[0.5, 0.5], prediction=torch.tensor([2.5, 1.5]), right=2,
        highlight=["b", "a"], title="a case",
    )  # fmt: skip
    assert lines(ax) == {
        "other sources": [[3.0, 1.0], [4.0, -2.0]],
        "b": [[1.0, 0.0]],
        "a": [[0.0, 0.0], [2.0, 1.0]],
        "the right source": [[2.0, 1.0]],
        "question": [[0.5, 0.5]],
    }
    (arrow,) = ax.texts
    assert (arrow.xyann, tuple(arrow.xy)) == ((0.5, 0.5), (2.5, 1.5))  # from the question to the prediction
    shown = {line.get_label(): line for line in ax.get_lines()}
    assert shown["question"].get_marker() == "*"
    assert shown["the right source"].get_markerfacecolor() == "none"  # a ring that hides nothing
    grey = shown["other sources"].get_color()
    assert grey == "#C9C9C9" and len({grey, shown["a"].get_color(), shown["b"].get_color()}) == 3
    assert shown["a"].get_marker() != shown["b"].get_marker()  # told apart without colours
    assert keys(ax.figure) == [*lines(ax), "question to prediction"]
    assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == (
        "a case", "first principal component", "second",
    )  # fmt: skip
    assert ax.get_aspect() == 1 and plt.get_fignums() == []


def test_the_right_source_is_seen_even_under_the_arrow():
    for highlight, tint in ((["a"], "#0072B2"), ([], "#333333")):
        ax = plot_neighbourhood(
            None, POINTS, TOPICS, question=[0, 0], prediction=POINTS[2], right=2, highlight=highlight
        )
        there = [line for line in ax.get_lines() if np.array(line.get_data()).T.tolist() == [POINTS[2]]]
        top = max(there, key=lambda line: line.get_zorder())
        assert top.get_zorder() > ax.texts[0].get_zorder() and top.get_markerfacecolor() == tint


def test_an_arrow_out_of_the_cloud_stays_inside_the_axes():
    ax = plot_neighbourhood(None, POINTS, TOPICS, question=[0.5, 0.5], prediction=[9.0, 8.0])
    ax.figure.canvas.draw()
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left < 9 < right and low < 8 < high


def test_parts_may_be_left_out_and_panels_share_a_figure():
    fig, axes = figure(1, 2)
    first = plot_neighbourhood(axes[0, 0], POINTS, TOPICS, legend=False, axes=("u", "v"))
    assert first is axes[0, 0] and fig.legends == [] and lines(first) == {"sources": POINTS}
    assert (first.get_xlabel(), first.get_ylabel()) == ("u", "v") and len(first.texts) == 0
    plot_neighbourhood(axes[0, 1], POINTS, TOPICS, question=[0, 0], highlight=["a", "b", "c", "d"])
    assert keys(fig) == ["a", "b", "c", "d", "question"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"points": [[0.0, 1.0, 2.0]] * 5}, r"points must be \[n, 2\]"),
        ({"topics": ["a"]}, "got .*1 topics"),
        ({"points": np.zeros((0, 2)), "topics": []}, r"points must be \[n, 2\]"),
        ({"highlight": ["a", "z"]}, r"at most 6 of the topics, got \['z'\]"),
        ({"highlight": ["a"] * 7}, "at most 6 of the topics, got 7"),
        ({"right": 5}, "right must be a row of the 5 points, got 5"),
        ({"right": -1}, "right must be a row"),
        ({"prediction": [0.0, 0.0]}, "prediction needs the question"),
        ({"question": [0.0, 0.0, 0.0]}, r"must be \[2\], got \[\(3,\)\]"),
    ],
)
def test_a_neighbourhood_that_does_not_fit_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        plot_neighbourhood(None, **{"points": POINTS, "topics": TOPICS, **settings})


# --- ranks
# ------------------------------------------------------------------------------------------------------


def test_a_bar_from_the_rank_before_to_the_rank_after():
    fig = plot_rank_bars(["null space", "convolve", "count"], [112, 3, 6.5], [12, 76, 6.5], pool=4569, title="ranks")
    assert isinstance(fig, Figure) and plt.get_fignums() == []
    (ax,) = fig.axes
    for place, (old, new, tint) in enumerate([(112, 12, BETTER), (3, 76, WORSE), (6.5, 6.5, SAME)]):
        bar, before, after = ax.get_lines()[3 * place : 3 * place + 3]
        assert [list(data) for data in bar.get_data()] == [[old, new], [place, place]]
        assert (list(before.get_xdata()), list(after.get_xdata())) == ([old], [new])
        assert before.get_markerfacecolor() == "white" != after.get_markerfacecolor()
        assert {to_hex(line.get_color()).upper() for line in (bar, before, after)} == {tint.upper()}
        assert after.get_zorder() > before.get_zorder() > bar.get_zorder()
    assert len({BETTER, WORSE, SAME}) == 3
    said = [(text.get_text(), text.xy, text.get_ha()) for text in ax.texts]
    assert said == [
        ("112", (112, 0), "left"), ("12", (12, 0), "right"),
        ("76", (76, 1), "left"), ("3", (3, 1), "right"),
        ("6.5", (6.5, 2), "left"),
    ]  # fmt: skip
    assert [text.get_text() for text in ax.get_yticklabels()] == ["null space", "convolve", "count"]
    low, high = ax.get_ylim()
    assert low > 2 > 0 > high  # the first on top
    assert ax.get_xscale() == "log" and "among 4,569: lower is better" in ax.get_xlabel()
    assert ax.get_title(loc="left") == "ranks"
    assert keys(fig) == ["without steering", "with steering", "better", "worse"]


def test_the_key_names_only_what_there_is():
    fig = plot_rank_bars(["x"], torch.tensor([5]), torch.tensor([2]), names=("cosine", "JASPER"))
    assert keys(fig) == ["cosine", "JASPER", "better"]
    assert "among" not in fig.axes[0].get_xlabel()
    assert keys(plot_rank_bars(["x"], [2], [2])) == ["without steering", "with steering"]
    assert keys(plot_rank_bars(["x"], [2], [3])) == ["without steering", "with steering", "worse"]


@pytest.mark.parametrize("top", [1, 8, 250, 4569, 45690])
def test_ranks_have_round_ticks_and_the_dots_room(top):
    fig = plot_rank_bars(["x"], [top], [1])
    fig.canvas.draw()
    (ax,) = fig.axes
    low, high = ax.get_xlim()
    shown = [text.get_text() for text in ax.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert low < 1 and top < high and 2 <= len(shown) <= 10 and "1" in shown and "10" in shown
    ends = [text.get_window_extent().x1 for text in ax.texts if text.get_text() == f"{top:g}"]
    assert ends[0] < ax.bbox.x1


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ([1, 2], [1], r"as many as labels \(2\), got \(2,\) and \(1,\)"),
        ([1], [1], r"as many as labels \(2\)"),
        ([1, 0], [1, 1], "ranks_before must lie between 1 and 100, got 0"),
        ([1, 1], [1, 101], "ranks_after must lie between 1 and 100, got 101"),
        ([1, 1], [1, float("nan")], "ranks_after must lie between 1 and 100, got nan"),
    ],
)
def test_ranks_that_are_none_are_refused(before, after, says):
    with pytest.raises(ValueError, match=says):
        plot_rank_bars(["a", "b"], before, after, pool=100)


def test_infinite_ranks_and_no_ranks_are_refused():
    with pytest.raises(ValueError, match="got inf"):
        plot_rank_bars(["a"], [1], [float("inf")])
    with pytest.raises(ValueError, match=r"as many as labels \(0\)"):
        plot_rank_bars([], [], [])


# --- recall
# ------------------------------------------------------------------------------------------------------

ROWS = [
    {"method": "chance", "mean": 0.011},
    {"method": "cosine", "mean": 0.693, "sd": 0.005},
    {"method": "JASPER linear", "mean": 0.844, "sd": 0.01},
]


def read(ax):
    """Of every row: mean, whisker, colour, whether it is filled, and the text."""
    dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
    whiskers = [None] * len(dots)
    for container in ax.containers:
        place = round(float(container[0].get_ydata()[0]))
        for bar in container[2]:
            whiskers[place] = bar.get_segments()[0][:, 0].tolist()
    return [
        (
            dot.get_xdata()[0],
            whisker,
            to_hex(dot.get_color()).upper(),
            to_hex(dot.get_markerfacecolor()) != "#ffffff",
            text.get_text(),
        )
        for dot, whisker, text in zip(dots, whiskers, ax.texts, strict=True)
    ]


def test_rows_have_their_mean_whisker_colour_and_text():
    fig = plot_recall_rows(ROWS, "recall@10", title="test split")
    (ax,) = fig.axes
    chance, cosine, ours = read(ax)
    grey = "#6E6E6E"
    assert chance == (pytest.approx(1.1), None, grey, False, "1.1")
    assert cosine == (pytest.approx(69.3), pytest.approx([68.8, 69.8]), grey, False, "69.3 ± 0.5")
    assert ours == (pytest.approx(84.4), pytest.approx([83.4, 85.4]), COLORS["JEPA"], True, "84.4 ± 1.0")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["chance", "cosine", "JASPER linear"]
    assert [text.get_fontstyle() for text in ax.get_yticklabels()] == ["italic", "italic", "normal"]
    assert (ax.get_xlabel(), ax.get_title(loc="left")) == ("recall@10 (%)", "test split")
    low, high = ax.get_ylim()
    assert low > 2 > 0 > high and plt.get_fignums() == []


def test_rows_of_the_results_files_hold_a_number_per_split():
    rows = [{"name": "ridge", "mrr": [0.5, 0.6, 0.7]}, {"name": "fused", "mrr": 0.65}]
    (ax,) = plot_recall_rows(rows, "mrr", ours=["fused"], label="name", percent=False).axes
    ridge, fused = read(ax)
    assert ridge[0] == pytest.approx(0.6) and ridge[1] == pytest.approx([0.5, 0.7]) and ridge[4] == "0.600 ± 0.100"
    assert fused[0] == 0.65 and fused[1] is None and fused[4] == "0.650"
    assert (ridge[3], fused[3]) == (False, True) and ax.get_xlabel() == "mrr"


def test_ours_may_be_named():
    assert [row[3] for row in read(plot_recall_rows(ROWS, ours=["cosine"]).axes[0])] == [False, True, False]
    assert [row[3] for row in read(plot_recall_rows(ROWS, ours=[]).axes[0])] == [False] * 3


def test_text_has_room_and_no_tick_stands_above_100_percent():
    rows = [*ROWS, {"method": "oracle", "mean": 0.97, "sd": 0.02}]
    fig = plot_recall_rows(rows)
    (ax,) = fig.axes
    fig.canvas.draw()
    assert max(ax.get_xticks()) == 100
    assert all(text.get_window_extent().x1 <= ax.bbox.x1 for text in ax.texts)
    (ax,) = plot_recall_rows([{"method": "x", "mean": 150.0}, {"method": "y", "mean": 90.0}], percent=False).axes
    assert max(ax.get_xticks()) > 100


def test_rows_without_a_value_are_named():
    with pytest.raises(ValueError, match="rows must have mean and sd, or 'mrr', got 'y' with method, recall"):
        plot_recall_rows([{"method": "x", "mrr": 0.5}, {"method": "y", "recall": 0.5}], "mrr")
    with pytest.raises(ValueError, match="rows must not be empty"):
        plot_recall_rows([])
