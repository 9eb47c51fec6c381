"""Are the stored chapters what a reader may rely on?

Every check is a function of one notebook that returns complaints. First come the checks, then the chapters they are
applied to, then notebooks that were made bad on purpose: a guard that never barks is no guard.
"""

import copy
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.notebooks import read_twin, small_png

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = ROOT / "notebooks" / "src"

CELLS = range(30, 61)  # how many cells a chapter has
CELL_LINES = 25  # of code
SETUP_LINES = 8
MAX_BYTES = 1_000_000
CPU_SECONDS = 90  # of a chapter, as printed when its outputs were stored
ALT_CHARACTERS = 15  # fewer cannot say what a figure shows
CLOSING = ["Check your understanding", "What to remember", "Scale up", "References"]

ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/-])/(?:home|root|Users|work|tmp|usr|opt|mnt|var|private|builds|workspace)/|\b[A-Z]:\\\w"
)
DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")
COST = re.compile(r"^this chapter(?: so far)?: (\d+) s of CPU time", re.M)
PROGRESS_BAR = re.compile(r"\d+%\|")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook):
    return [(cell, output) for cell in code_cells(notebook) for output in cell.outputs]


def texts(output):
    """Everything in an output that a reader could read; pictures are left out."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return output.traceback
    data = output.get("data", {})
    return [DATA_URI.sub("", value) for kind, value in data.items() if kind.startswith("text/")]


def is_tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


# --- the checks -----------------------------------------------------------------------------------------------------


def check_kernelspec(notebook):
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"kernelspec is {name!r}, not 'python3'"]


def check_counts(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are not 1, 2, 3, ...: {counts}"]


def check_outputs_exist(notebook):
    return [] if outputs(notebook) else ["no cell has an output: nbval would compare nothing"]


def check_no_errors(notebook):
    return [
        f"cell {cell.execution_count} stores the error {output.ename}"
        for cell, output in outputs(notebook)
        if output.output_type == "error" and not is_tagged(cell, "raises-exception")
    ]


def check_no_stderr(notebook):
    return [
        f"cell {cell.execution_count} stores stderr: {output.text[:80]!r}"
        for cell, output in outputs(notebook)
        if output.output_type == "stream" and output.name == "stderr"
    ]


def check_no_progress_bars(notebook):
    return [
        f"cell {cell.execution_count} stores a progress bar; tqdm must keep quiet when TQDM_DISABLE is set"
        for cell, output in outputs(notebook)
        if any(PROGRESS_BAR.search(text) for text in texts(output))
    ]


def check_no_absolute_paths(notebook):
    everything = [cell.source for cell in notebook.cells]
    everything += [text for _, output in outputs(notebook) for text in texts(output)]
    found = [match.group() for text in everything for match in ABSOLUTE_PATH.finditer(text)]
    return [f"absolute paths of one machine: {sorted(set(found))}"] if found else []


def check_no_svg(notebook):
    return [
        f"cell {cell.execution_count} stores an SVG, whose bytes differ between equal runs; use PNG"
        for cell, output in outputs(notebook)
        if "image/svg+xml" in output.get("data", {})
    ]


def check_no_trailing_semicolon(notebook):
    return [
        f"cell {cell.execution_count} ends in ';', which nbval does not honour; assign the value instead"
        for cell in code_cells(notebook)
        if cell.source.rstrip().endswith(";")
    ]


def check_size(notebook):
    size = len(nbformat.writes(notebook).encode())
    return [] if size <= MAX_BYTES else [f"{size} bytes, more than {MAX_BYTES}"]


def check_number_of_cells(notebook):
    number = len(notebook.cells)
    return [] if number in CELLS else [f"{number} cells, not {CELLS.start} to {CELLS.stop - 1}"]


def check_cell_length(notebook):
    lengths = [(cell.execution_count, len(cell.source.splitlines())) for cell in code_cells(notebook)]
    return [f"cell {n} has {length} lines, more than {CELL_LINES}" for n, length in lengths if length > CELL_LINES]


def check_cost(notebook):
    """The stored cost is within the budget. A cell cannot assert that: on a busy machine any code takes longer."""
    printed = [int(n) for _, output in outputs(notebook) for text in texts(output) for n in COST.findall(text)]
    if len(printed) != 1:
        return [f"the CPU time of the chapter is printed {len(printed)} times, not once"]
    return [] if printed[0] <= CPU_SECONDS else [f"{printed[0]} s of CPU time, more than {CPU_SECONDS}"]


def check_opening(notebook):
    """Title and claim, the box At a glance, the setup cell."""
    complaints = []
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        complaints.append("the first cell is not a title")
    elif len([line for line in first.source.splitlines() if line.strip()]) < 2:
        complaints.append("no one-line claim under the title")
    before_code = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            break
        before_code.append(cell.source)
    glance = next((source for source in before_code if "At a glance" in source), None)
    if glance is None:
        complaints.append("no box 'At a glance' before the setup cell")
    else:
        missing = [word for word in ("goals", "cost", "seed") if word not in glance.lower()]
        complaints += [f"'At a glance' does not mention: {word}" for word in missing]
    setup = setup_cell(notebook)
    if len(setup.splitlines()) > SETUP_LINES:
        complaints.append(f"the setup cell has {len(setup.splitlines())} lines, more than {SETUP_LINES}")
    return complaints


def setup_cell(notebook):
    return next((cell.source for cell in code_cells(notebook)), "")


def check_closing(notebook):
    """The last sections, in their order."""
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    titles = [
        line.lstrip("#:`").replace("{admonition}", "").strip() for line in lines if re.match(r"#+ |:::|```", line)
    ]
    places = [next((i for i, title in enumerate(titles) if title.startswith(name)), None) for name in CLOSING]
    complaints = [f"no section {name!r}" for name, place in zip(CLOSING, places, strict=True) if place is None]
    found = [place for place in places if place is not None]
    return complaints + ([] if found == sorted(found) else [f"sections are not in the order {CLOSING}"])


def check_questions(notebook):
    """Three to five questions whose answers unfold."""
    number = sum(len(re.findall(r"^:class:.*\bdropdown\b", cell.source, re.M)) for cell in notebook.cells)
    return [] if number >= 3 else [f"{number} drop-down answers, fewer than 3"]


def check_alt_text(notebook):
    """Every picture says what it shows: plain figures in the cell's metadata, knobs in their own HTML."""
    complaints = []
    for cell in code_cells(notebook):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if kinds & {"image/png", "image/jpeg"} and len(alt.strip()) < ALT_CHARACTERS:
            complaints.append(f'cell {cell.execution_count} needs mystnb={{"image": {{"alt": "..."}}}} for its figure')
        for output in cell.outputs:
            for tag in re.findall(r"<img\b[^>]*>", DATA_URI.sub("", output.get("data", {}).get("text/html", ""))):
                if not re.search(r'\balt="[^"]+"', tag):
                    complaints.append(f"cell {cell.execution_count}: an <img> without alt text")
    return complaints


def check_twin(notebook, twin):
    """The stored notebook holds the cells of its twin, with their metadata, and nothing else."""

    def facts(book):
        return [(cell.cell_type, cell.source, dict(cell.metadata), cell.id) for cell in book.cells]

    stored, source = facts(notebook), facts(twin)
    if len(stored) != len(source):
        return [f"{len(stored)} cells, but {len(source)} in its twin: run `make notebooks`"]
    differing = [i for i, (a, b) in enumerate(zip(stored, source, strict=True)) if a != b]
    return [f"cells {differing} differ from the twin: run `make notebooks`"] if differing else []


def check_same_setup(notebooks):
    return [] if len({setup_cell(notebook) for notebook in notebooks}) <= 1 else ["the setup cells differ"]


def check_toc(names, toc):
    """Every chapter is in the table of contents, and the other way round."""
    listed = {
        Path(entry["file"]).name
        for part in toc["parts"]
        for entry in part["chapters"]
        if entry["file"].startswith("notebooks/")
    }
    return [f"only in notebooks/: {name}" for name in sorted(set(names) - listed)] + [
        f"only in _toc.yml: {name}" for name in sorted(listed - set(names))
    ]


CHECKS = [
    check_kernelspec,
    check_counts,
    check_outputs_exist,
    check_no_errors,
    check_no_stderr,
    check_no_progress_bars,
    check_no_absolute_paths,
    check_no_svg,
    check_no_trailing_semicolon,
    check_size,
    check_number_of_cells,
    check_cell_length,
    check_cost,
    check_opening,
    check_closing,
    check_questions,
    check_alt_text,
]

# --- the chapters ---------------------------------------------------------------------------------------------------


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(path, check):
    assert not (complaints := check(read(path))), "\n".join(complaints)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_equals_its_twin(path):
    nbformat.validate(read(path))
    assert not (complaints := check_twin(read(path), read_twin(SOURCES / f"{path.stem}.py"))), "\n".join(complaints)


def test_every_twin_has_a_chapter():
    assert CHAPTERS, "there are no chapters"
    assert {path.stem for path in CHAPTERS} == {path.stem for path in SOURCES.glob("*.py")}


def test_every_chapter_has_the_same_setup_cell():
    assert not check_same_setup([read(path) for path in CHAPTERS])


def test_every_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    assert not (complaints := check_toc([path.stem for path in CHAPTERS], toc)), "\n".join(complaints)


# --- notebooks made bad on purpose ----------------------------------------------------------------------------------

PIXEL = "iVBORw0KGgo="


def good_notebook():
    """The smallest notebook without a complaint."""
    answers = ":::{admonition} Why?\n:class: dropdown\nBecause.\n:::\n" * 3
    cells = [
        new_markdown_cell("# Title\n\nOne claim."),
        new_markdown_cell(":::{admonition} At a glance\nGoals: see. Cost: little. Seeds: one.\n:::"),
        new_code_cell("import jepa_lab"),
        new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"}, execution_count=2)]),
        new_code_cell(
            "figure()",
            outputs=[new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})],
            metadata={"mystnb": {"image": {"alt": "A line that rises from left to right."}}},
        ),
        new_code_cell(
            "explore()",
            outputs=[
                new_output("display_data", {"text/html": '<div class="jepa-knob"><img alt="A bar." src="x"></div>'})
            ],
        ),
        new_code_cell("print(cost)", outputs=[new_output("stream", text="this chapter: 90 s of CPU time\n")]),
        *[new_markdown_cell("Text.") for _ in range(21)],
        new_markdown_cell(f"## Check your understanding\n\n{answers}"),
        *[new_markdown_cell(f"## {name}\n\nText.") for name in CLOSING[1:]],
    ]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
    return notebook


def test_the_good_notebook_is_good():
    assert [complaint for check in CHECKS for complaint in check(good_notebook())] == []


def stream(name, text):
    return new_output("stream", name=name, text=text)


def drop_cells(notebook, text):
    notebook.cells = [cell for cell in notebook.cells if text not in cell.source]


def swap_last_cells(notebook):
    notebook.cells[-1], notebook.cells[-2] = notebook.cells[-2], notebook.cells[-1]


# check, what is wrong, how it was made so
BAD = [
    (check_kernelspec, "kernel", lambda nb: nb.metadata.kernelspec.update(name="my-env")),
    (check_counts, "gap", lambda nb: code_cells(nb)[1].update(execution_count=7)),
    (check_counts, "never run", lambda nb: code_cells(nb)[0].update(execution_count=None)),
    (check_outputs_exist, "stripped", lambda nb: [cell.update(outputs=[]) for cell in code_cells(nb)]),
    (
        check_no_errors,
        "error",
        lambda nb: code_cells(nb)[1].outputs.append(new_output("error", ename="E", evalue="", traceback=[])),
    ),
    (check_no_stderr, "warning", lambda nb: code_cells(nb)[1].outputs.append(stream("stderr", "UserWarning"))),
    (
        check_no_progress_bars,
        "bar",
        lambda nb: code_cells(nb)[1].outputs.append(stream("stdout", " 40%|####      | 4/10")),
    ),
    (check_no_absolute_paths, "output", lambda nb: code_cells(nb)[1].outputs.append(stream("stdout", "in /home/me/x"))),
    (check_no_absolute_paths, "source", lambda nb: nb.cells.append(new_markdown_cell("see `/tmp/x`"))),
    (check_no_absolute_paths, "drive", lambda nb: nb.cells.append(new_markdown_cell(r"see C:\Users\me"))),
    (check_no_svg, "svg", lambda nb: code_cells(nb)[2].outputs[0].data.update({"image/svg+xml": "<svg/>"})),
    (check_no_trailing_semicolon, "semicolon", lambda nb: code_cells(nb)[2].update(source="figure();\n")),
    (check_size, "heavy", lambda nb: nb.cells.append(new_markdown_cell("x" * MAX_BYTES))),
    (check_number_of_cells, "few", lambda nb: nb.update(cells=nb.cells[:29])),
    (check_number_of_cells, "many", lambda nb: nb.update(cells=nb.cells * 2)),
    (check_cell_length, "long", lambda nb: code_cells(nb)[1].update(source="x = 1\n" * 26)),
    (check_cost, "costly", lambda nb: code_cells(nb)[4].outputs[0].update(text="this chapter: 91 s of CPU time")),
    (check_cost, "no cost", lambda nb: code_cells(nb)[4].update(outputs=[])),
    (check_opening, "no title", lambda nb: nb.cells.pop(0)),
    (check_opening, "no claim", lambda nb: nb.cells[0].update(source="# Title")),
    (check_opening, "no glance", lambda nb: nb.cells.pop(1)),
    (check_opening, "no cost", lambda nb: nb.cells[1].update(source="At a glance: goals, seeds")),
    (check_opening, "long setup", lambda nb: nb.cells[2].update(source="import x\n" * 9)),
    *[(check_closing, f"no {name}", lambda nb, name=name: drop_cells(nb, name)) for name in CLOSING],
    (check_closing, "order", swap_last_cells),
    (check_questions, "no answers", lambda nb: drop_cells(nb, "dropdown")),
    (check_alt_text, "no alt", lambda nb: code_cells(nb)[2].metadata.pop("mystnb")),
    (check_alt_text, "short alt", lambda nb: code_cells(nb)[2].metadata.mystnb.image.update(alt="figure")),
    (check_alt_text, "knob", lambda nb: code_cells(nb)[3].outputs[0].data.update({"text/html": '<img src="x">'})),
]


@pytest.mark.parametrize(("check", "wrong", "spoil"), BAD, ids=[f"{c.__name__}-{w}" for c, w, _ in BAD])
def test_a_bad_notebook_is_refused(check, wrong, spoil):
    notebook = good_notebook()
    spoil(notebook)
    assert check(notebook)


def test_an_expected_error_is_allowed():
    notebook = good_notebook()
    code_cells(notebook)[1].metadata.tags = ["raises-exception"]
    code_cells(notebook)[1].outputs = [new_output("error", ename="ValueError", evalue="", traceback=[])]
    assert not check_no_errors(notebook)


@pytest.mark.parametrize("text", ["a/tmp/b", "https://example.org/home/x", "./work/x", "B/N/D"])
def test_what_is_no_absolute_path(text):
    notebook = good_notebook()
    notebook.cells.append(new_markdown_cell(text))
    assert not check_no_absolute_paths(notebook)


def test_edited_cells_are_out_of_sync():
    twin, notebook = good_notebook(), None
    notebook = copy.deepcopy(twin)
    assert not check_twin(notebook, twin)
    notebook.cells[3].source = "1 + 2"
    assert check_twin(notebook, twin) == ["cells [3] differ from the twin: run `make notebooks`"]
    notebook.cells.pop()
    assert check_twin(notebook, twin)
    retagged = copy.deepcopy(twin)
    retagged.cells[3].metadata.tags = ["nbval-ignore-output"]
    assert check_twin(retagged, twin)


def test_another_setup_cell_is_refused():
    other = good_notebook()
    other.cells[2].source = "import numpy"
    assert check_same_setup([good_notebook(), other])


def test_table_of_contents_both_ways():
    toc = {"parts": [{"chapters": [{"file": "book/intro"}, {"file": "notebooks/01_a"}, {"file": "notebooks/02_b"}]}]}
    assert check_toc(["01_a", "02_b"], toc) == []
    assert check_toc(["01_a"], toc) == ["only in _toc.yml: 02_b"]
    assert check_toc(["01_a", "02_b", "03_c"], toc) == ["only in notebooks/: 03_c"]


def test_reading_a_twin(tmp_path):
    source = tmp_path / "01_x.py"
    source.write_text(
        '# %% [markdown]\n# # Title\n\n# %% tags=["nbval-ignore-output"] mystnb={"image": {"alt": "A line."}}\nplot()\n'
    )
    notebook = read_twin(source)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == ["cell-00", "cell-01"]
    assert notebook.cells[1].metadata == {"tags": ["nbval-ignore-output"], "mystnb": {"image": {"alt": "A line."}}}
    assert not check_kernelspec(notebook)


def test_stored_figures_are_small_and_look_the_same():
    from base64 import b64decode, b64encode
    from io import BytesIO

    import numpy as np
    from PIL import Image

    from jepa_lab import plots

    out = BytesIO()
    x = np.linspace(0, 6, 200)
    plots.curves({"JEPA": (x, np.sin(x)), "VICReg": (x, np.cos(x))}, "x", "y").savefig(out, format="png", dpi=200)
    before = b64encode(out.getvalue()).decode()
    after = small_png(before)
    assert len(after) < 0.6 * len(before)
    a, b = (np.asarray(Image.open(BytesIO(b64decode(text))).convert("RGB"), dtype=float) for text in (before, after))
    assert a.shape == b.shape and np.abs(a - b).mean() < 1 and np.abs(a - b).max() < 40
