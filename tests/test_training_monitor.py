"""The monitor of training: nothing logged is lost or bent, what is drawn was logged, and it survives a resume."""

import io
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from jepa_lab import plots
from jepa_lab.data.images import digits
from jepa_lab.metric_names import higher_is_better, is_loss
from jepa_lab.monitor import TrainingMonitor
from jepa_lab.nets import EncoderConfig, image_encoder
from jepa_lab.objectives import Supervised
from jepa_lab.training import TrainConfig, Trainer, seed_all

NAN, INF = math.nan, math.inf
VARIANTS = ("zero", "centroid", "keyword", "residual")


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield


def logged(rows, **settings):
    monitor = TrainingMonitor(**settings)
    for epoch, row in rows.items():
        monitor.log_metrics(epoch, row)
    return monitor


def shares(*values):
    return {f"steering/{name}": value for name, value in zip(VARIANTS, values, strict=False)}


MIXED = {
    1: {"loss": 0.1 + 0.2, "lr": 1e-300},
    2: {"loss": NAN, "validation/recall@1": 1 / 3, 'odd, "name"': -0.0},
    5: {"loss": INF, "validation/recall@1": -INF, "late\r\nname": 5e-324},
}


def same(a, b):
    """Equal to the last bit, NaN and the sign of zero included, and in the same order."""
    return list(a) == list(b) and all(list(map(repr, a[name])) == list(map(repr, b[name])) for name in a)


# --- logging
# ------------------------------------------------------------------------------------------------------


def test_history_has_a_row_an_epoch_and_none_where_nothing_was_logged():
    monitor = logged({1: {"loss": 2.0}, 2: {"loss": 1.5, "validation/loss": 1.75}, 4: {"validation/loss": 1.25}})
    assert monitor.history == {
        "epoch": [1, 2, 4],
        "loss": [2.0, 1.5, None],
        "validation/loss": [None, 1.75, 1.25],
    }


def test_every_kind_of_number_is_a_scalar():
    numbers = [1, True, 1.0, np.float32(1), np.int64(1), np.array(1.0), np.ones((1, 1)), torch.tensor(1), torch.ones(1)]
    numbers += [torch.tensor(True), torch.ones(1, 1, dtype=torch.bfloat16), torch.ones((), requires_grad=True)]
    row = logged({1: {f"m{i}": value for i, value in enumerate(numbers)}}).history
    assert [row[f"m{i}"] for i in range(len(numbers))] == [[1.0]] * len(numbers)
    assert all(type(row[f"m{i}"][0]) is float for i in range(len(numbers)))


def test_precision_is_that_of_what_was_given():
    third = torch.tensor(1, dtype=torch.float64) / 3
    row = logged({1: {"double": third, "single": third.float(), "number": 1 / 3}}).history
    assert row["double"] == row["number"] == [1 / 3] and row["single"] == [np.float32(1 / 3).item()] != row["number"]
    row = logged({1: {"rows": torch.tensor(2**24 + 1), "loss": torch.tensor(0.5)}}).history
    assert row["rows"] == [2**24 + 1]  # as a float32 beside the loss it would be even


def test_no_graph_is_kept_and_later_writes_are_not_seen():
    monitor = TrainingMonitor()
    value = torch.ones(3, requires_grad=True)
    running = torch.ones(())
    monitor.log_metrics(1, {"loss": value.sum(), "running": running})
    assert not any(waiting.requires_grad for waiting in monitor._rows[1].values())
    running += 1
    assert monitor.history == {"epoch": [1], "loss": [3.0], "running": [1.0]}


def test_tensors_are_fetched_together_and_not_during_a_call(monkeypatch):
    fetched = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: fetched.append(len(self)) or real(self))
    for name in ("item", "__float__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_: pytest.fail("a call waited for the device"))
    monitor = TrainingMonitor()
    for epoch in range(1, 6):
        monitor.log_metrics(epoch, {"loss": torch.tensor(float(epoch)), "accuracy": torch.tensor(0.5), "lr": 0.1})
    assert fetched == []
    assert monitor.history["loss"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert fetched == [10]
    assert monitor.history["accuracy"] == [0.5] * 5 and fetched == [10]


def test_what_waits_on_the_device_is_bounded():
    monitor = TrainingMonitor()
    for epoch in range(1, 1025):
        monitor.log_metrics(epoch, {"loss": torch.tensor(0.5)})
    assert not any(isinstance(value, torch.Tensor) for row in monitor._rows.values() for value in row.values())
    assert monitor._waiting == 0 and monitor.history["loss"] == [0.5] * 1024


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (torch.ones(3), ValueError),
        (torch.ones(0), ValueError),
        (torch.tensor(1j), ValueError),
        (np.ones(2), TypeError),
        ("0.5", TypeError),
        (None, TypeError),
        ([0.5], TypeError),
        (1j, TypeError),
    ],
)
def test_what_is_no_scalar_is_refused_by_name_and_nothing_of_the_call_is_kept(value, error):
    monitor = logged({1: {"loss": 1.0}})
    with pytest.raises(error, match=r"metrics\['centroid'\] must be one real number"):
        monitor.log_metrics(2, {"loss": 0.5, "centroid": value})
    assert monitor.history == {"epoch": [1], "loss": [1.0]}


@pytest.mark.parametrize("name", ["epoch", ""])
def test_names_must_be_text_and_not_epoch(name):
    with pytest.raises(ValueError, match="must be called by text other than 'epoch'"):
        TrainingMonitor().log_metrics(1, {name: 1.0})


def test_epochs_are_whole_numbers():
    for epoch in (-1, True):
        with pytest.raises(ValueError, match="epoch must be a whole number from 0"):
            TrainingMonitor().log_metrics(epoch, {"loss": 1.0})
    assert logged({0: {"loss": 1.0}}).history["epoch"] == [0]


def test_values_that_are_not_finite_are_kept_and_marked():
    monitor = logged(MIXED)
    assert repr(monitor.history["loss"]) == "[0.30000000000000004, nan, inf]"
    assert monitor.not_finite == {"loss": [2, 5], "validation/recall@1": [5]}
    assert logged({1: {"loss": 1.0}}).not_finite == {}


# --- the same epoch again, and a resume
# ---------------------------------------------------------------------------


def test_a_second_call_for_an_epoch_adds_and_replaces():
    monitor = logged({1: {"loss": 3.0}, 2: {"loss": 2.0, "lr": 0.1}})
    monitor.log_metrics(2, {"loss": torch.tensor(1.5), "validation/loss": 1.75})
    assert monitor.history == {"epoch": [1, 2], "loss": [3.0, 1.5], "lr": [None, 0.1], "validation/loss": [None, 1.75]}


def test_going_back_forgets_that_epoch_and_what_lies_after():
    monitor = logged({epoch: {"loss": float(epoch), "old": 1.0} for epoch in range(1, 6)})
    monitor.log_metrics(3, {"loss": 0.5})
    assert monitor.history == {"epoch": [1, 2, 3], "loss": [1.0, 2.0, 0.5], "old": [1.0, 1.0, None]}


def test_going_back_to_an_epoch_that_was_skipped():
    monitor = logged({epoch: {"loss": float(epoch)} for epoch in (5, 10, 15)})
    monitor.log_metrics(8, {"loss": 0.5})
    assert monitor.history == {"epoch": [5, 8], "loss": [5.0, 0.5]}


def test_what_is_no_repetition_must_not_erase_the_later_epochs():
    monitor = logged({epoch: {"loss": float(epoch)} for epoch in (1, 2, 3)})
    with pytest.raises(ValueError, match=r"epoch 1 lies before epoch 3.*validation/loss.*truncate\(0\)"):
        monitor.log_metrics(1, {"validation/loss": 0.5})
    assert monitor.history["loss"] == [1.0, 2.0, 3.0]
    monitor.truncate(1)
    monitor.log_metrics(2, {"other": 0.5})
    assert monitor.history == {"epoch": [1, 2], "loss": [1.0, None], "other": [None, 0.5]}


def test_state_goes_through_a_checkpoint_and_the_run_goes_on(tmp_path):
    monitor = logged({1: {"loss": torch.tensor(2.0), "rank": NAN}, 2: {"loss": 1.0}}, lower=["rank"])
    torch.save({"monitor": monitor.state_dict()}, tmp_path / "checkpoint.pt")
    monitor.log_metrics(3, {"loss": 99.0})  # lost with the process
    resumed = logged({7: {"other": 1.0}}, higher=["x"])
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["monitor"])
    assert same(resumed.history, {"epoch": [1, 2], "loss": [2.0, 1.0], "rank": [NAN, None]})
    assert (resumed.higher, resumed.lower) == (set(), {"rank"})
    resumed.log_metrics(3, {"loss": 0.5})
    assert resumed.history["loss"] == [2.0, 1.0, 0.5]


# --- files
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".json", ".CSV"])
def test_files_bring_back_every_bit(suffix, tmp_path):
    monitor = logged(MIXED)
    path = monitor.export_history(tmp_path / "new" / f"history{suffix}")
    assert path.read_bytes() and same(TrainingMonitor.load(path).history, monitor.history)
    assert TrainingMonitor.load(path, higher=["lr"]).higher == {"lr"}
    empty = TrainingMonitor().export_history(tmp_path / f"empty{suffix}")
    assert TrainingMonitor.load(empty).history == {"epoch": []}


def test_csv_is_a_table_with_empty_cells(tmp_path):
    path = logged({1: {"loss": 0.1}, 2: {"loss": NAN, "a,b": 1.0}}).export_history(str(tmp_path / "history.csv"))
    assert path.read_bytes() == b'epoch,loss,"a,b"\n1,0.1,\n2,nan,1.0\n'
    path.write_bytes(b"\xef\xbb\xbfepoch,loss\r\n1,0.1\r\n")  # as a spreadsheet saves it
    assert TrainingMonitor.load(path).history == {"epoch": [1], "loss": [0.1]}


def test_json_is_strict(tmp_path):
    path = logged({1: {"loss": 0.1, "x": INF}, 2: {"loss": NAN}}).export_history(tmp_path / "history.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "epoch": [1, 2],
        "loss": [0.1, "nan"],
        "x": ["inf", None],
    }


@pytest.mark.parametrize("name", ["history.txt", "history", "csv", "history.csv.gz"])
def test_other_suffixes_are_refused_before_anything_is_written(name, tmp_path):
    for act in (logged(MIXED).export_history, TrainingMonitor.load):
        with pytest.raises(ValueError, match=r"path must end in \.csv or \.json, got"):
            act(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_write_that_fails_leaves_the_old_file(suffix, tmp_path, monkeypatch):
    path = logged({1: {"loss": 1.0}}).export_history(tmp_path / f"history{suffix}")
    old = path.read_bytes()

    class FullDisk(io.BufferedWriter):
        def write(self, content):
            super().write(content[:3])
            self.flush()
            raise OSError(28, "No space left on device")

    opened = []

    def full(self, mode="r", *args, **kwargs):
        opened.append(self.name)
        return FullDisk(io.FileIO(self, mode.replace("b", "")))

    monkeypatch.setattr("pathlib.Path.open", full)
    monitor = logged({1: {"loss": 1.0}, 2: {"loss": 0.5}})
    with pytest.raises(OSError, match="No space left"):
        monitor.export_history(path)
    monkeypatch.undo()
    assert opened and path.name not in opened
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    monitor.export_history(path)
    assert TrainingMonitor.load(path).history["loss"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("h.csv", "", "equally long columns, one of them called epoch"),
        ("h.csv", "loss\n1.0\n", "called epoch"),
        ("h.csv", "epoch,loss\n1,2.0\n2\n", "row 3 has 1 cells, the header 2"),
        ("h.csv", "epoch,loss\n1,two\n", "row 2, loss: 'two' is no number"),
        ("h.csv", "epoch,loss\n1.5,2.0\n", "row 2, epoch: '1.5' is no number"),
        ("h.csv", "epoch,loss,loss\n1,2.0,3.0\n", "twice"),
        ("h.csv", "epoch,loss\n2,1.0\n2,2.0\n", r"rise, got \[2, 2\]"),
        ("h.csv", "epoch,loss\n,1.0\n", r"whole numbers from 0 that rise, got \[None\]"),
        ("h.csv", 'epoch,loss\n1,"2', "unexpected end"),
        ("h.csv", b"epoch,loss\n1,\xff", "utf-8"),
        ("h.json", "{", "Expecting"),
        ("h.json", "[1]", "object of lists"),
        ("h.json", '{"epoch": 1}', "object of lists"),
        ("h.json", '{"epoch": [1], "loss": [1.0, 2.0]}', "equally long"),
        ("h.json", '{"epoch": [1], "loss": ["one"]}', "loss: 'one' is no number"),
        ("h.json", '{"epoch": [1], "loss": [true]}', "loss: True is no number"),
        ("h.json", '{"epoch": [1.0], "loss": [2]}', "whole numbers"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(name, content, says, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"(?s)h\.(csv|json) is no history of training: .*{says}"):
        TrainingMonitor.load(path)


def test_from_history_checks_what_it_is_given():
    with pytest.raises(ValueError, match="equally long"):
        TrainingMonitor.from_history({"epoch": [1, 2], "loss": [1.0]})
    with pytest.raises(ValueError, match="rise"):
        TrainingMonitor.from_history({"epoch": [2, 1], "loss": [1.0, 2.0]})
    history = {"epoch": [1, 3], "loss": [None, 1.0]}
    assert TrainingMonitor.from_history(history).history == history


# --- summary
# ------------------------------------------------------------------------------------------------------


def test_names_say_which_end_is_best():
    terms = ["prediction", "contrastive", "vicreg", "vicreg/variance", "cross_entropy", "info_nce"]
    losses = ["loss", "validation/loss", "validation/prediction", "total", "centroid_loss", *terms]
    assert all(is_loss(name) and higher_is_better(name) is False for name in losses)
    good = (
        "accuracy recall@1 validation/recall@10 mrr centroid_accuracy contrastive_accuracy knn_5 ndcg@10 loss_accuracy"
    )
    assert all(higher_is_better(name) is True and not is_loss(name) for name in good.split())
    neither = (
        "lr grad_norm tau target_std effective_rank steering/centroid prediction_norm contrastive_positive epoch @"
    )
    assert all(higher_is_better(name) is None and not is_loss(name) for name in neither.split())
    assert [higher_is_better(name) for name in ("error_rate", "perplexity")] == [False, False]


def test_summary_has_first_last_and_best_of_every_metric():
    rows = {
        1: {"loss": 3.0, "validation/recall@1": 0.2, "lr": 0.0},
        2: {"loss": 1.0, "validation/recall@1": 0.6, "lr": 0.3},
        3: {"loss": 2.0, "validation/recall@1": 0.6, "late": 7.0},
    }
    table = logged(rows).summary()
    assert table.header == ["metric", "first", "last", "best", "at epoch"]
    assert [cells for _, cells in table.rows] == [
        ["loss", "3", "2", "↓ 1", "2"],
        ["validation/recall@1", "0.2", "0.6", "↑ 0.6", "2"],
        ["lr", "0", "0.3", "–", "–"],
        ["late", "7", "7", "–", "–"],
    ]
    assert table.caption.startswith("3 epochs, 1 to 3.")


def test_direction_may_be_told():
    rows = {
        1: {"rank": 5.0, "validation/rank": 9.0, "loss": 1.0},
        2: {"rank": 3.0, "validation/rank": 4.0, "loss": 2.0},
    }
    monitor = logged(rows, lower=["rank"], higher=["loss"])
    best = {cells[0]: cells[3:] for _, cells in monitor.summary().rows}
    assert best == {"rank": ["↓ 3", "2"], "validation/rank": ["↓ 4", "2"], "loss": ["↑ 2", "2"]}
    assert monitor.best("rank") == (2, 3.0) and monitor.best("rank", higher=True) == (1, 5.0)
    with pytest.raises(ValueError, match="higher must be True or False for 'lr'"):
        monitor.best("lr")
    with pytest.raises(ValueError, match="'accuracy' has no finite value; logged: rank, validation/rank, loss"):
        monitor.best("accuracy")
    with pytest.raises(ValueError, match="same metric, got loss in both"):
        TrainingMonitor(higher=["loss"], lower=["loss"])


def test_summary_leaves_broken_values_out_of_the_best_and_lists_them():
    monitor = logged({1: {"loss": NAN, "mrr": INF}, 2: {"loss": 2.0, "mrr": 0.5}, 3: {"loss": -INF}, 4: {"loss": 3.0}})
    monitor.log_metrics(4, {"accuracy": NAN})
    table = monitor.summary()
    assert table.header[-1] == "not finite at epoch"
    assert [cells for _, cells in table.rows] == [
        ["loss", "nan", "3", "↓ 2", "2", "1, 3"],
        ["mrr", "inf", "0.5", "↑ 0.5", "2", "1"],
        ["accuracy", "nan", "nan", "–", "–", "4"],
    ]


def test_it_prints_straight_columns_and_shows_a_table():
    monitor = logged({1: {"a long name <b>": 1.0, "loss": 123456.0}, 2: {"loss": 0.5}})
    lines = str(monitor).splitlines()
    assert lines == str(monitor.summary()).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1 and lines[2].startswith("loss ")
    assert lines[2].index("1.235e+05") + len("1.235e+05") == lines[0].index("first") + len("first")
    html = monitor._repr_html_()
    assert "<table" in html and "a long name &lt;b&gt;" in html and "<b>" not in html
    assert repr(monitor) == "<TrainingMonitor: 2 epochs, 1 to 2, 2 metrics>"
    assert repr(logged({4: {"loss": 1.0}})) == "<TrainingMonitor: Epoch 4, 1 metrics>"
    assert "Nothing logged yet" in str(TrainingMonitor())


# --- losses
# ------------------------------------------------------------------------------------------------------


def drawn(ax):
    """The lines of a panel by label: epochs and values, NaN as None."""
    return {
        line.get_label(): [[None if v != v else float(v) for v in data] for data in line.get_data()]
        for line in ax.get_lines()
    }


def panels(fig):
    return {ax.get_title(loc="left"): ax for ax in fig.axes if ax.axison}


LOSSES = {
    1: {"centroid": 1.0, "loss": 4.0, "lr": 0.1, "accuracy": 0.5, "validation/loss": 5.0, **shares(1.0)},
    2: {"centroid": 0.9, "loss": 3.0, "lr": 0.1, "accuracy": 0.6, **shares(1.0)},
    3: {"centroid": 0.8, "loss": 2.0, "lr": 0.1, "accuracy": 0.7, "validation/loss": 4.5, "validation/vicreg": 9.0},
}


def test_a_panel_per_loss_the_total_first_training_and_validation_together():
    fig = logged(LOSSES).plot_losses()
    axes = panels(fig)
    assert list(axes) == ["loss", "centroid", "vicreg"]
    assert drawn(axes["loss"]) == {
        "train": [[1, 2, 3], [4.0, 3.0, 2.0]],
        "validation": [[1, 3], [5.0, 4.5]],  # a missing epoch is bridged
    }
    assert drawn(axes["centroid"]) == {"train": [[1, 2, 3], [1.0, 0.9, 0.8]]}
    assert drawn(axes["vicreg"]) == {"validation": [[3], [9.0]]}
    assert [line.get_markevery() for line in axes["loss"].get_lines()] == [[0, 1, 2], [0, 1]]  # few enough for dots
    colours = [line.get_color() for line in axes["loss"].get_lines()]
    styles = [line.get_linestyle() for line in axes["loss"].get_lines()]
    assert len(set(colours)) == 2 == len(set(styles))  # the dashes tell them apart in grey too
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["train", "validation"]
    assert [line.get_color() for line in fig.legends[0].get_lines()] == colours
    assert [ax.get_xlabel() for ax in axes.values()] == ["epoch"] * 3 and axes["loss"].get_ylabel() == "loss"
    assert len({ax.get_xlim() for ax in axes.values()}) == 1
    assert plt.get_fignums() == [] and fig.get_figwidth() == 7.0


def test_every_column_of_panels_has_its_epochs_labelled():
    fig = logged({e: {f"loss{i}_loss": 1.0 / e for i in range(5)} for e in (1, 2)}).plot_losses()
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "", "epoch", "epoch", "epoch", ""]
    assert [ax.get_ylabel() for ax in fig.axes] == ["loss", "", "", "loss", "", ""]
    assert [ax.axison for ax in fig.axes] == [True] * 5 + [False]


def test_names_choose_the_panels():
    monitor = logged(LOSSES)
    assert list(panels(monitor.plot_losses(names=["lr", "loss"]))) == ["lr", "loss"]
    with pytest.raises(ValueError, match=r"among centroid, loss, lr, accuracy.*got \['validation/loss', 'x'\]"):
        monitor.plot_losses(names=["validation/loss", "x"])
    with pytest.raises(ValueError, match="must be losses among lr, got none"):
        logged({1: {"lr": 0.1}}).plot_losses()
    with pytest.raises(ValueError, match="nothing logged"):
        TrainingMonitor().plot_losses()


def visible(fig, ax, line):
    """The markers of a line that are drawn, inside the panel."""
    fig.canvas.draw()
    low, high = sorted(ax.get_ylim())
    points = list(zip(*line.get_data(), strict=True))
    return [points[i] for i in line.get_markevery() if low < points[i][1] < high]


def test_a_single_epoch_is_seen():
    fig = logged({3: {"loss": 1.5, "validation/loss": 1.0, "centroid": 0.0}}).plot_losses()
    for ax in panels(fig).values():
        for line in ax.get_lines():
            assert len(visible(fig, ax, line)) == 1
        low, high = ax.get_xlim()
        assert low < 3 < high and [t for t in ax.get_xticks() if low <= t <= high] == [3]


def test_a_constant_series_is_flat_and_inside():
    rounding = {e: {"loss": math.log(2) + e * 1e-9, "centroid": 0.0, "vicreg": -2.0} for e in range(1, 4)}
    fig = logged(rounding).plot_losses()
    fig.canvas.draw()
    for ax in panels(fig).values():
        low, high = ax.get_ylim()
        y = ax.get_lines()[0].get_ydata()
        assert low < min(y) and max(y) < high
        assert max(y) - min(y) < 0.001 * (high - low)
        assert ax.yaxis.get_major_formatter().get_offset() == "" and ax.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([21.0, 5.0, 1.0], "log"),
        ([19.0, 5.0, 1.0], "linear"),
        ([21.0, 5.0, 0.0], "linear"),
        ([21.0, 5.0, -1.0], "linear"),
        ([1e6, NAN, 1.0], "log"),
        ([INF, NAN, -INF], "linear"),
    ],
)
def test_the_axis_is_logarithmic_only_where_that_helps(values, scale):
    fig = logged({e: {"loss": value} for e, value in enumerate(values, 1)}).plot_losses()
    ax = panels(fig)["loss"]
    fig.canvas.draw()
    assert ax.get_yscale() == scale
    assert bool(len(ax.get_yticks())) == any(map(math.isfinite, values))  # no scale where there is nothing
    if scale == "log":
        low, high = ax.get_ylim()
        labels = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
        assert sum(bool(text) for text in labels) >= 3


def test_validation_counts_for_the_scale():
    fig = logged({1: {"loss": 2.0, "validation/loss": 100.0}, 2: {"loss": 1.0}}).plot_losses()
    assert panels(fig)["loss"].get_yscale() == "log"


def test_what_is_not_finite_breaks_the_line_and_is_marked():
    values = [3.0, 2.5, NAN, 2.0, INF, 1.5, 1.4] + [1.3] * 7
    fig = logged({e: {"loss": value} for e, value in enumerate(values, 1)}).plot_losses()
    ax = panels(fig)["loss"]
    lines = drawn(ax)
    assert lines["train"][1] == [value if math.isfinite(value) else None for value in values]
    assert lines["not finite"] == [[3, 5], [0, 0]]
    line, cross = ax.get_lines()
    assert cross.get_marker() == "x" and cross.get_transform() == ax.get_xaxis_transform()
    assert [x for x, _ in visible(fig, ax, line)] == [4]  # alone between two gaps: the line alone would not show it
    assert "not finite" in [text.get_text() for text in fig.legends[0].get_texts()]


def test_figures_are_saved_whole(tmp_path):
    monitor = logged({1: {"loss": 1.0, **shares(1.0)}})
    for plot in (monitor.plot_losses, monitor.plot_steering_distribution):
        for name, magic in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("c", b"\x89PNG")):
            path = tmp_path / "new" / name
            fig = plot(path)
            assert path.read_bytes().startswith(magic)
            path.unlink()
            assert plot(str(path)).get_figwidth() == fig.get_figwidth() and path.exists()
    old = (tmp_path / "new" / "a.png").read_bytes()
    with pytest.raises(ValueError, match="not supported"):
        monitor.plot_losses(tmp_path / "new" / "a.what")
    assert (tmp_path / "new" / "a.png").read_bytes() == old
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.svg", "c"]


# --- steering
# ------------------------------------------------------------------------------------------------------


def areas(fig):
    """The height of every area over the epochs, by label."""
    heights = {}
    for area in fig.axes[0].collections:
        x, y = area.get_paths()[0].vertices.T
        heights[area.get_label()] = {
            float(epoch): float(np.ptp(y[x == epoch])) for epoch in np.unique(x) if len(y[x == epoch])
        }
    return heights


def test_areas_are_the_shares():
    monitor = logged({1: shares(0.5, 0.2, 0.2, 0.1) | {"loss": 1.0}, 2: {"loss": 1.0}, 3: shares(0.1, 0.3, 0.3, 0.3)})
    fig = monitor.plot_steering_distribution()
    found = areas(fig)
    assert list(found) == list(VARIANTS)  # from the bottom
    for name, first, last in zip(VARIANTS, (0.5, 0.2, 0.2, 0.1), (0.1, 0.3, 0.3, 0.3), strict=True):
        assert found[name] == pytest.approx({1: first, 3: last})
    ax = fig.axes[0]
    assert ax.get_ylim() == (0, 1) and ax.get_xlim() == (1, 3)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "share of the questions")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(VARIANTS)[::-1]  # as they lie
    tints = {area.get_label(): to_hex(area.get_facecolor()[0]) for area in ax.collections}
    assert [to_hex(patch.get_facecolor()) for patch in fig.legends[0].get_patches()] == [
        tints[name] for name in VARIANTS[::-1]
    ]
    assert len(set(tints.values())) == 4


def test_one_epoch_and_unusual_variants_have_areas():
    fig = logged({3: {"steering/wrong": 0.25, "steering/zero": 0.75}}).plot_steering_distribution()
    assert areas(fig) == {"zero": {2.5: 0.75, 3.5: 0.75}, "wrong": {2.5: 0.25, 3.5: 0.25}}
    assert [t for t in fig.axes[0].get_xticks() if 2.5 <= t <= 3.5] == [3]
    late = logged({1: {"steering/zero": 1.0}, 2: {"steering/zero": 0.5, "steering/residual": 0.5}})
    assert areas(late.plot_steering_distribution())["residual"] == {1: 0.0, 2: 0.5}


@pytest.mark.parametrize(
    "bad", [(0.5, 0.2, 0.2, 0.102), (0.5, 0.2, 0.2, 0.098), (NAN, 0.5, 0.5), (1.5, -0.5), (INF, -INF)]
)
def test_shares_that_are_none_are_refused(bad):
    monitor = logged({1: shares(1.0, 0.0, 0.0, 0.0), 2: shares(*bad)})
    with pytest.raises(ValueError, match=r"steering shares of epoch 2 must lie in \[0, 1\] and sum to 1, got.*zero"):
        monitor.plot_steering_distribution()
    monitor.log_metrics(2, shares(0.5, 0.2, 0.2, 0.1009))
    monitor.plot_steering_distribution()


def test_without_shares_there_is_nothing_to_draw():
    for monitor in (TrainingMonitor(), logged({1: {"loss": 1.0, "centroid": 0.3}})):
        with pytest.raises(
            ValueError, match="no steering share was logged: metrics named steering/zero, steering/cent"
        ):
            monitor.plot_steering_distribution()


# --- with the trainer
# ------------------------------------------------------------------------------------------------------


class Record:
    """What `read` takes from a trainer."""

    def __init__(self, history, evaluations=None, epoch=0, interrupted=0):
        self.history, self.evaluations = history, evaluations or {}
        self.epoch, self.step = epoch, history.get("step", [0])[-1]
        self._whole = not interrupted
        # Batches may have a state, which reading must leave alone.
        self.batches = lambda epoch: [None] * interrupted if interrupted else pytest.fail("the batches were drawn")


def steps(n, **columns):
    return {"step": list(range(1, n + 1)), "loss": [float(i) for i in range(1, n + 1)], **columns}


def trained(monitor, every=1, epochs=3):
    data = digits()
    seed_all(0)
    few = {key: value[:128] for key, value in data["train"].items()}
    objective = Supervised(image_encoder(data["train"]["image"], EncoderConfig(patch=4, dim=16, depth=1, heads=2)))
    calls = []

    def evaluate(objective):
        calls.append(len(calls) + 1)
        return {"accuracy": 0.1 * calls[-1], "validation/loss": 1.0 / calls[-1]}

    config = TrainConfig(epochs=epochs, evaluate_every=every, batch_size=32)
    trainer = Trainer(objective, few, config, evaluate=monitor.watch(evaluate) if monitor else None)
    trainer.fit()
    return trainer


def test_it_watches_a_trainer_and_reads_its_history():
    monitor = TrainingMonitor()
    trainer = trained(monitor)
    assert trainer.evaluations["accuracy"] == pytest.approx([0.1, 0.2, 0.3])
    evaluations = {"validation/accuracy": trainer.evaluations["accuracy"], "validation/loss": [1.0, 1 / 2, 1 / 3]}
    assert monitor.history == {"epoch": [1, 2, 3]} | evaluations
    assert monitor.read(trainer) is monitor
    for history in (monitor.history, TrainingMonitor.from_trainer(trainer).history):
        assert history["epoch"] == [1, 2, 3]
        assert {name: history[name] for name in evaluations} == evaluations
        for name in ("loss", "lr", "accuracy", "grad_norm"):
            means = np.array(trainer.history[name]).reshape(3, 4).mean(1)
            assert history[name] == pytest.approx(means.tolist()), name
        assert "step" not in history
    monitor.plot_losses()


def test_reading_puts_the_epochs_right():
    """Every other epoch and at the end, which the count of the evaluations does not know."""
    monitor = TrainingMonitor()
    trainer = trained(monitor, every=2, epochs=5)
    assert monitor.history["epoch"] == [1, 2, 3]
    history = monitor.read(trainer).history
    assert history["epoch"] == [1, 2, 3, 4, 5]
    assert history["validation/loss"] == [None, 1.0, None, 1 / 2, 1 / 3]
    assert history["loss"] == pytest.approx(np.array(trainer.history["loss"]).reshape(5, 4).mean(1).tolist())


def test_without_evaluations_the_count_of_epochs_tells():
    trainer = trained(None)
    assert trainer.evaluations == {}
    assert TrainingMonitor.from_trainer(trainer).history["epoch"] == [1, 2, 3]
    whole = Record(steps(10), epoch=2)
    assert TrainingMonitor.from_trainer(whole).history == {"epoch": [1, 2], "loss": [3.0, 8.0]}
    interrupted = Record(steps(10), epoch=2, interrupted=4)  # in the third epoch of four steps
    assert TrainingMonitor.from_trainer(interrupted).history == {"epoch": [1, 2, 3], "loss": [2.5, 6.5, 9.5]}
    with pytest.raises(ValueError, match="has not taken a step"):
        TrainingMonitor().read(Record({}))


def test_steps_between_evaluations_are_divided_among_their_epochs():
    seen = {"epoch": [2, 3], "step": [6, 10], "accuracy": [0.5, 0.6]}
    for record in (Record(steps(12), seen, epoch=4), Record(steps(12), seen, epoch=3, interrupted=99)):
        assert TrainingMonitor.from_trainer(record).history == {
            "epoch": [1, 2, 3, 4],
            "loss": [2.0, 5.0, 8.5, 11.5],
            "validation/accuracy": [None, 0.5, 0.6, None],
        }
    twice = Record(steps(3), {"epoch": [1, 1], "step": [3, 3], "accuracy": [0.1, 0.2]}, epoch=1)
    assert TrainingMonitor.from_trainer(twice).history == {"epoch": [1], "loss": [2.0], "validation/accuracy": [0.2]}
    known = Record(steps(3, epoch=[4, 4, 5]), epoch=5)
    assert TrainingMonitor.from_trainer(known).history == {"epoch": [4, 5], "loss": [1.5, 3.0]}


def test_reading_again_replaces_and_keeps_what_is_not_the_trainers():
    monitor = logged({epoch: {"mine": float(epoch), "loss": 99.0} for epoch in range(1, 6)})
    monitor.read(Record(steps(2, epoch=[2, 3])))  # resumed after epoch 1, now at epoch 3
    assert monitor.history == {"epoch": [1, 2, 3], "mine": [1.0, 2.0, 3.0], "loss": [99.0, 1.0, 2.0]}
    once = monitor.history
    assert monitor.read(Record(steps(2, epoch=[2, 3]))).history == once
    late = logged({3: {"mine": 1.0}}).read(Record(steps(3, epoch=[1, 2, 3])))
    assert late.history == {"epoch": [1, 2, 3], "loss": [1.0, 2.0, 3.0], "mine": [None, None, 1.0]}


def test_watching_goes_on_after_a_resume_and_needs_no_evaluation():
    monitor = logged({1: {"validation/loss": 1.0}, 2: {"validation/loss": 1.0}, 3: {"loss": 2.0}})
    watched = monitor.watch(lambda objective: {"loss": 0.5})
    assert watched(None) == {"loss": 0.5}
    assert monitor.history["validation/loss"] == [1.0, 1.0, 0.5] and monitor.history["loss"] == [None, None, 2.0]
    monitor.watch(lambda objective: {"validation/loss": 0.25}, every=2)(None)
    assert monitor.history["epoch"] == [1, 2, 3, 5] and monitor.history["validation/loss"][-1] == 0.25
    before = monitor.history
    assert monitor.watch()(None) == {} and monitor.history == before
    with pytest.raises(ValueError, match="every must be at least 1"):
        monitor.watch(every=0)
