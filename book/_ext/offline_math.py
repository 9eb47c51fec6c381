"""Mathematics without the network: copy one MathJax file into the built book.

`tex-svg.js` holds all that MathJax needs to draw TeX as SVG, fonts included. It comes out of the installed package
sphinx-mathjax-offline, which ships MathJax 3. Using that package as an extension would copy all of its 24 MB.
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

FILE = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"


def copy_mathjax(app, exception):
    """After an HTML build, put the file where `mathjax_path` looks for it."""
    if exception is None and app.builder.format == "html":
        source = Path(distribution("sphinx-mathjax-offline").locate_file(FILE))
        target = Path(app.outdir) / "_static" / app.config.mathjax_path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def setup(app):
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
