"""Does nbval notice when the package changes under a chapter, and only then? With the very flags of `make test`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import clean, execute, read_twin

pytestmark = [pytest.mark.slow, pytest.mark.notebook]

ROOT = Path(__file__).resolve().parent.parent

PACKAGE = "def double(x):\n    return 2 * x\n"
# A printed fact, and a knob whose frame differs from run to run in its bytes but not in its text.
TWIN = """# %%
import os
from base64 import b64encode

from guarded import double

# %%
print(double(21))

# %%
class Knob:
    def _repr_html_(self):
        frame = b64encode(os.urandom(30)).decode()
        return f'<div class="jepa-knob">{LABEL}<img alt="x" src="data:image/png;base64,{frame}"></div>'


LABEL = "ratio"
Knob()
"""


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    (tmp_path / "guarded.py").write_text(PACKAGE)
    (tmp_path / "01_x.py").write_text(TWIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = read_twin(tmp_path / "01_x.py")
    execute(notebook, tmp_path)
    nbformat.write(clean(notebook), tmp_path / "01_x.ipynb")
    return tmp_path


def nbval(folder):
    flags = re.search(r"^NBVAL := (.+)$", (ROOT / "Makefile").read_text(), re.M).group(1)
    flags = flags.replace("tests/nbval_sanitize.cfg", str(ROOT / "tests" / "nbval_sanitize.cfg")).split()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, *flags]
    command += ["--rootdir", str(folder), str(folder / "01_x.ipynb")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_nbval_sees_a_changed_result_and_nothing_else(chapter):
    same = nbval(chapter)
    assert same.returncode == 0, same.stdout + same.stderr

    (chapter / "guarded.py").write_text(PACKAGE.replace("2 * x", "3 * x"))
    changed = nbval(chapter)
    assert changed.returncode == 1, changed.stdout + changed.stderr
    assert "63" in changed.stdout

    (chapter / "guarded.py").write_text(PACKAGE)
    path = chapter / "01_x.ipynb"
    path.write_text(path.read_text().replace('class=\\"jepa-knob\\">ratio', 'class=\\"jepa-knob\\">other'))
    assert nbval(chapter).returncode == 1, "the text of a knob is compared, only its frames are not"
