"""Figures and tables: one colour per method, what is drawn is what was given, and nothing is shown twice."""

import itertools
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from jepa_lab import plots
from jepa_lab.plots import COLORS, CONTROLS, color

ROWS = [
    {"method": "chance", "kNN": 0.1, "rank": 1.0},
    {"method": "random init", "kNN": [0.47, 0.48, 0.46], "rank": [9.0, 9.0, 9.0]},
    {"method": "JEPA", "kNN": [0.80, 0.82, 0.84], "rank": [10.0, 12.0, 14.0]},
    {"method": "contrastive", "kNN": [0.92, 0.93, 0.94], "rank": [20.0, 20.0, 20.0]},
    {"method": "supervised", "kNN": [0.97, 0.97, 0.97]},
]


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        plots.use_style()
        yield


def png(fig: Figure) -> bytes:
    stream = BytesIO()
    fig.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def pixels(fig: Figure) -> np.ndarray:
    return plt.imread(BytesIO(png(fig)))[..., :3]


# --- colours
# ------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as a dichromat sees it.
SIGHT = {
    "full": np.eye(3),
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(tint: str, sight: np.ndarray) -> np.ndarray:
    c = np.array(to_rgb(tint))
    linear = np.clip(np.asarray(sight) @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = xyz / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_methods_differ_in_colour_for_every_eye(sight):
    learned = [name for name in COLORS if name not in CONTROLS]
    for a, b in itertools.combinations(learned, 2):
        distance = np.linalg.norm(lab(COLORS[a], SIGHT[sight]) - lab(COLORS[b], SIGHT[sight]))
        assert distance > 12, (a, b, distance)  # 2.3 is a just noticeable difference


def test_controls_are_grey_and_differ_in_lightness():
    tints = [to_rgb(COLORS[name]) for name in CONTROLS]
    assert all(max(t) - min(t) == 0 for t in tints)
    levels = sorted(t[0] for t in tints)
    assert min(b - a for a, b in itertools.pairwise(levels)) > 0.1


def test_a_colour_is_found_however_the_method_is_written():
    assert color("jepa") == color("JEPA") == COLORS["JEPA"]
    assert color("SimCLR") == color("contrastive")
    assert color("random_init") == color("random-init") == COLORS["random init"]
    assert color("what", "#123456") == "#123456"
    with pytest.raises(ValueError, match=r"JEPA, contrastive.*got 'what'"):
        color("what")


# --- every figure
# -------------------------------------------------------------------------------------------------

Z = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
FIGURES = {
    "image_grid": lambda: plots.image_grid(torch.rand(5, 1, 8, 8), ["0", "1", "2", "3", "4"]),
    "mask_grid": lambda: plots.mask_grid(torch.tensor([[[0, 1], [2, 3]]]).expand(3, 2, 2)),
    "heatmap": lambda: plots.heatmap(torch.eye(3), "title", "share (%)", annotate=True),
    "similarity": lambda: plots.similarity(Z @ Z.T, labels=list("abcd")),
    "curves": lambda: plots.curves({"JEPA": (torch.arange(3), torch.rand(2, 3))}, "step", "loss"),
    "spectrum": lambda: plots.spectrum({"JEPA": torch.rand(4) + 0.1}),
    "dots": lambda: plots.dots(ROWS, "kNN"),
    "circle": lambda: plots.circle(Z[:, :2], list("abcd"), arrows=Z[:, 2:4]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_forgotten_by_pyplot_and_repeat_their_bytes(name):
    torch.manual_seed(0)
    once = FIGURES[name]()
    assert isinstance(once, Figure)
    assert plt.get_fignums() == []  # what stands there is shown a second time at the end of a cell
    assert once.get_figwidth() <= 7.0
    torch.manual_seed(0)
    assert png(once) == png(FIGURES[name]())


def test_the_style_gives_exact_sizes_and_repeatable_svg():
    assert mpl.rcParams["savefig.bbox"] in (None, "standard")
    assert mpl.rcParams["svg.hashsalt"] == "jepa_lab"
    assert pixels(plots.curves({"JEPA": ([0, 1], [0, 1])}, "x", "y")).shape[1] == 7 * 200


@pytest.mark.slow
def test_a_notebook_shows_a_figure_exactly_once():
    import nbformat
    from nbclient import NotebookClient

    cells = [
        "from jepa_lab import plots\nplots.use_style()",
        "fig = plots.heatmap([[0.0, 1.0]], label='share')\nfig",
        "plots.heatmap([[0.0, 1.0]], label='share')",
        "for _ in range(3):\n    plots.heatmap([[0.0, 1.0]], label='share')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", store_widget_state=False, timeout=120).execute()
    shown = [[o for o in cell.outputs if "image/png" in o.get("data", {})] for cell in notebook.cells]
    assert [len(pictures) for pictures in shown] == [0, 1, 1, 0]
    assert [len(cell.outputs) for cell in notebook.cells] == [0, 1, 1, 0]
    # Sharp, and of the size that the figure has: twice the pixels at half the width.
    data, size = shown[1][0]["data"], shown[1][0]["metadata"]["image/png"]
    assert data["text/plain"] == f"<Figure size {size['width']}x{size['height']} with 2 Axes>"


# --- pictures
# -----------------------------------------------------------------------------------------------------


def test_image_grid_shows_each_image_under_its_title():
    x = torch.stack([torch.full((1, 4, 4), v) for v in (0.0, 0.5, 1.0)])
    fig = plots.image_grid(x, ["a", "b", "c"], columns=2)
    shown = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["a", "b", "c"]
    assert [float(ax.images[0].get_array().mean()) for ax in shown] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="titles must be as many as the 3"):
        plots.image_grid(x, ["a"])
    with pytest.raises(ValueError, match="C = 1 or 3"):
        plots.image_grid(torch.zeros(2, 2, 4, 4))


def test_mask_grid_paints_each_code_and_explains_it():
    fig = plots.mask_grid(torch.tensor([[[0, 1], [2, 3]]]))
    cells = fig.axes[0].images[0].get_array()
    assert len({tuple(cells[i, j]) for i in (0, 1) for j in (0, 1)}) == 4
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["context", "target 1", "target 2", "neither"]
    with pytest.raises(ValueError, match="codes >= 0"):
        plots.mask_grid(torch.tensor([[[-1, 0]]]))


def test_mask_grid_leaves_the_context_of_an_image_uncovered():
    picture = torch.rand(1, 3, 8, 8)
    fig = plots.mask_grid(torch.tensor([[[0, 1], [2, 3]]]), images=picture)
    below, above = fig.axes[0].images
    torch.testing.assert_close(torch.from_numpy(np.array(below.get_array()))[..., 0].float(), picture[0, 0])
    assert above.get_array()[0, 1, 3] == 0  # transparent where the context encoder sees
    assert (above.get_array()[[0, 1, 1], [0, 0, 1], 3] > 0.5).all()
    with pytest.raises(ValueError, match="images must be as many as the 1 masks, got 2"):
        plots.mask_grid(torch.ones(1, 2, 2), images=torch.zeros(2, 1, 4, 4))


def test_panels_share_one_colour_scale_and_name_their_quantity():
    fig = plots.heatmap({"a": [[0.0, 1.0]], "b": [[2.0, 5.0]]}, label="share (%)")
    a, b = (ax.images[0] for ax in fig.axes[:2])
    assert a.get_clim() == b.get_clim() == (0.0, 5.0)
    assert fig.axes[-1].get_ylabel() == "share (%)"
    with pytest.raises(ValueError, match="matrix"):
        plots.heatmap([1.0, 2.0])


def test_similarity_is_diverging_from_minus_one_to_one_and_writes_small_ones_out():
    fig = plots.similarity([[1.0, -0.5], [-0.5, 1.0]], labels=["a", "b"])
    assert fig.axes[0].images[0].get_clim() == (-1, 1)
    assert [t.get_text() for t in fig.axes[0].texts] == ["1.00", "-0.50", "-0.50", "1.00"]
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["a", "b"]
    assert plots.similarity(torch.eye(20)).axes[0].texts[:] == []


# --- lines and dots
# -----------------------------------------------------------------------------------------------


def test_curves_draw_mean_and_band_in_the_colour_of_the_method():
    runs = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    fig = plots.curves({"JEPA": ([0, 1, 2], runs), "MAE": ([0, 1], [1.0, 1.0])}, "step", "loss", levels={"chance": 0.5})
    ax = fig.axes[0]
    jepa, mae, chance = ax.lines
    assert jepa.get_ydata().tolist() == [2.0, 3.0, 4.0]
    assert (jepa.get_color(), mae.get_color(), chance.get_color()) == (COLORS["JEPA"], COLORS["MAE"], COLORS["chance"])
    (band,) = ax.collections  # one run has no band
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(2 - 2**0.5)
    assert heights.max() == pytest.approx(4 + 2**0.5)
    assert to_rgba(band.get_facecolor()[0])[:3] == to_rgb(COLORS["JEPA"])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "loss", "linear")
    assert plots.curves({"a": ([1], [1])}, "x", "y", logy=True).axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match=r"'JEPA'.*T = 2"):
        plots.curves({"JEPA": ([0, 1], [1.0, 2.0, 3.0])}, "x", "y")


def test_settings_that_are_no_method_get_colours_of_their_own():
    lines = plots.curves({f"ratio {r}": ([0, 1], [r, r]) for r in (1, 2, 3)}, "x", "y").axes[0].lines
    assert len({line.get_color() for line in lines}) == 3
    assert not {line.get_color().upper() for line in lines} & set(COLORS.values())


def test_spectrum_sorts_and_divides_by_the_largest():
    line = plots.spectrum({"JEPA": torch.tensor([1.0, 4.0, 0.0])}).axes[0].lines[0]
    assert line.get_ydata().tolist() == [1.0, 0.25, 1e-8]
    with pytest.raises(ValueError, match="'JEPA'"):
        plots.spectrum({"JEPA": torch.zeros(3)})


def test_dots_mark_means_and_hollow_controls():
    fig = plots.dots([*ROWS, {"method": "MAE"}], "kNN")
    ax = fig.axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [round(float(line.get_xdata()[0]), 4) for line in dots] == [10, 47, 82, 93, 97]
    hollow = [line.get_markerfacecolor() == "white" for line in dots]
    assert hollow == [True, True, False, False, True]
    assert dots[2].get_color() == COLORS["JEPA"]
    bars = [width for c in ax.collections if (width := np.ptp(c.get_segments()[0][:, 0])) > 1e-6]
    assert bars == pytest.approx([2, 4, 2], abs=1e-6)  # twice the s.d.; single runs and equal runs have no bar
    assert ax.get_xlabel() == "kNN (%)"
    with pytest.raises(ValueError, match="kNN, rank, got 'linear'"):
        plots.dots(ROWS, "linear")


def test_circle_puts_points_and_arrows_where_they_are():
    fig = plots.circle([[1.0, 0.0], [0.0, 1.0]], ["a", "b"], arrows=[[0.0, 0.5], [0.0, 0.0]])
    ax = fig.axes[0]
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(1, 0), (0, 1)]
    arrows = [t for t in ax.texts if getattr(t, "arrow_patch", None) is not None]
    assert [(tuple(t.xy), tuple(t.xyann)) for t in arrows] == [((1, 0.5), (1, 0))]
    with pytest.raises(ValueError, match="arrows alike"):
        plots.circle([[1.0, 0.0]], arrows=[[1.0, 0.0], [0.0, 1.0]])


def test_circle_leaves_out_arrows_that_are_all_head():
    fig = plots.circle([[1.0, 0.0], [0.0, 1.0]], arrows=[[0.0, 0.01], [0.03, 0.0]])
    arrows = [t for t in fig.axes[0].texts if getattr(t, "arrow_patch", None) is not None]
    assert [tuple(t.xyann) for t in arrows] == [(0, 1)]


def test_circles_with_a_limit_are_of_one_size():
    kinds = {"few": (["a", ""], [[0.0, 0.0]] * 2), "many": (["a long one", "b"], [[0.0, 0.9], [0.8, 0.0]])}
    figures = {
        limit: [plots.circle([[1.0, 0.0], [0.0, 1.0]], *kind, limit=limit) for kind in kinds.values()]
        for limit in (None, 1.5)
    }
    free, fixed = ([pixels(fig).shape for fig in figs] for figs in figures.values())
    assert free[0] != free[1]
    assert fixed[0] == fixed[1]
    assert [(fig.axes[0].get_xlim(), fig.axes[0].get_ylim()) for fig in figures[1.5]] == [((-1.5, 1.5),) * 2] * 2


def test_a_logarithmic_x_axis_has_plain_ticks_at_the_data():
    lines = {"JEPA": ([4, 8, 512], [1.0, 2.0, 3.0]), "MAE": ([4, 64], [1.0, 2.0])}
    charts = plots.panels({"loss": lines}, "x", logx=True), plots.curves(lines, "x", "y", logx=True)
    for ax in (fig.axes[0] for fig in charts):
        assert [t.get_text() for t in ax.get_xticklabels()] == ["4", "8", "64", "512"]
        assert ax.get_xticks(minor=True).size == 0
    many = plots.curves({"JEPA": (range(1, 12), range(11))}, "x", "y", logx=True).axes[0]
    assert len(many.get_xticks()) < 11


# --- table
# --------------------------------------------------------------------------------------------------------


def test_table_in_markdown():
    assert repr(plots.table(ROWS, units={"rank": ""}, caption="Digits.")).splitlines() == [
        "| method | kNN (%) | rank |",
        "|:--|--:|--:|",
        "| *chance* | 10.0 | 1.0 |",
        "| *random init* | 47.0 ± 1.0 | 9.0 ± 0.0 |",
        "| JEPA | 82.0 ± 2.0 | 12.0 ± 2.0 |",
        "| contrastive | **93.0 ± 1.0** | **20.0 ± 0.0** |",
        "| *supervised* | 97.0 ± 0.0 | – |",
        "",
        "Digits. Mean ± s.d. over 3 seeds. Italic: controls.",
    ]


def test_table_html_sets_controls_apart_and_escapes():
    html = plots.table([*ROWS, {"method": "<b>", "kNN": [0.5, 0.5, 0.5]}], ["kNN"])._repr_html_()
    controls, methods = html.split('<tbody class="jepa-methods"')
    assert [name in controls for name in ("chance", "supervised", "JEPA", "contrastive")] == [True, True, False, False]
    assert "<strong>93.0 ± 1.0</strong>" in methods
    assert "<strong>" not in controls
    assert "&lt;b&gt;" in methods
    assert "<b>" not in html
    assert html == plots.table([*ROWS, {"method": "<b>", "kNN": [0.5, 0.5, 0.5]}], ["kNN"])._repr_html_()


def test_table_knows_when_less_is_better_and_when_one_seed_is_one_seed():
    rows = [{"method": "JEPA", "loss": 0.5}, {"method": "MAE", "loss": 0.25}]
    text = repr(plots.table(rows, units={"loss": "nats"}, lower=["loss"], digits=2))
    assert "| MAE | **0.25** |" in text
    assert "loss (nats)" in text
    assert text.endswith("One seed.")
    with pytest.raises(ValueError, match="loss, got 'kNN'"):
        plots.table(rows, ["kNN"])
    with pytest.raises(ValueError, match="'method'"):
        plots.table([{"loss": 1.0}])


def test_a_legend_over_panels_names_the_methods_of_all_of_them():
    x = [0, 1]
    fig = plots.panels({"one": {"MAE": (x, x)}, "two": {"JEPA": (x, x)}, "three": {"MAE": (x, x)}}, xlabel="step")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["MAE", "JEPA"]
