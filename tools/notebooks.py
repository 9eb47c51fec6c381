"""The only writer of chapter outputs: notebooks/src/NN_slug.py -> notebooks/NN_slug.ipynb, executed in place.

    python tools/notebooks.py                        every chapter
    python tools/notebooks.py 01_jepa_in_a_minute    some chapters

One edits the py:percent twin in notebooks/src. This script reads it with jupytext, runs all of it in a fresh kernel and
writes the notebook in one step, so that a stored output can never belong to other code. What would differ between two
equal runs (timings, random cell ids, versions) is not written.
"""

import argparse
import hashlib
import os
import sys
import time
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "src"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_TIMEOUT = 180  # seconds; nbval runs with the same bound

# What the kernel inherits: one thread (sums in a fixed order), plain matplotlib, no progress bars in stored outputs.
# PYTHONHASHSEED fixes the order of sets of strings.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONHASHSEED": "0",
}


def read_twin(source: Path) -> NotebookNode:
    """The notebook that a twin describes: no outputs, ids from the cell's place, kernel python3."""
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = NotebookNode(kernelspec=NotebookNode(KERNELSPEC), language_info=NotebookNode(name="python"))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop in place what two equal runs would not share."""
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNELSPEC),
        language_info=NotebookNode(name="python", pygments_lexer="ipython3"),
    )
    widget_names: dict[str, str] = {}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            # The id of a live widget is random, and its state lives in a kernel that is gone. The page and an unrun
            # notebook show the HTML beside it, so the live view is not stored where there is such HTML.
            data = output.get("data", {})
            if "text/html" in data:
                data.pop("application/vnd.jupyter.widget-view+json", None)
            if "image/png" in data:
                data["image/png"] = small_png(data["image/png"])
            view = data.get("application/vnd.jupyter.widget-view+json")
            if view:
                place = widget_names.setdefault(view["model_id"], str(len(widget_names)))
                view["model_id"] = hashlib.md5(place.encode(), usedforsecurity=False).hexdigest()
    return notebook


def small_png(text: str) -> str:
    """The picture with a palette of 256 colours, about a third of the bytes; as it was where that is no smaller.

    A figure has few colours. Its metadata, which names the version of matplotlib, goes too.
    """
    with Image.open(BytesIO(b64decode(text))) as picture:
        flat, dpi = picture.convert("RGB"), picture.info.get("dpi")
    out = BytesIO()
    palette = flat.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(out, format="PNG", optimize=True, **({"dpi": dpi} if dpi else {}))
    small = b64encode(out.getvalue()).decode()
    return small if len(small) < len(text) else text


def execute(notebook: NotebookNode, folder: Path = NOTEBOOKS) -> None:
    """Run every cell in place in a fresh kernel whose working directory is the folder of the chapters."""
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name=KERNELSPEC["name"],
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
    )
    client.execute(env={**os.environ, **KERNEL_ENVIRONMENT})


def write(notebook: NotebookNode, target: Path) -> None:
    """Validate, then write to a neighbour and rename: an interrupted run leaves the old notebook whole."""
    nbformat.validate(notebook)
    draft = target.with_suffix(".ipynb.part")
    draft.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    draft.replace(target)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Sync the twins and execute the chapters in place.")
    parser.add_argument("names", nargs="*", help="chapters (NN_slug); all when none is given")
    names = [Path(name).stem for name in parser.parse_args(arguments).names]
    known = {source.stem: source for source in sorted(SOURCES.glob("*.py"))}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such chapter: {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    failed = []
    for name in names or known:
        notebook, start = read_twin(known[name]), time.perf_counter()
        print(f"{name} ...", end=" ", flush=True)
        try:
            execute(notebook)
        except CellExecutionError as error:
            failed.append(name)
            print(f"FAILED, {name}.ipynb left as it was\n{error}", file=sys.stderr)
            continue
        write(clean(notebook), NOTEBOOKS / f"{name}.ipynb")
        size = (NOTEBOOKS / f"{name}.ipynb").stat().st_size / 1000
        print(f"{time.perf_counter() - start:.0f} s, {size:.0f} kB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
