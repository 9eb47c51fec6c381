"""Copy the figure of the README out of chapter 01, so that it is the figure that the chapter's cell has drawn.

python tools/readme_figure.py
"""

import base64
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "notebooks" / "01_jepa_in_a_minute.ipynb"
FIGURE = ROOT / "book" / "_static" / "figures" / "readme.png"
ALT = "Three panels"  # how the alt text of the figure begins


def read_figure(chapter: Path = CHAPTER) -> bytes:
    """The PNG of the one figure whose alt text begins with `ALT`."""
    found = []
    for cell in json.loads(chapter.read_text(encoding="utf-8"))["cells"]:
        if cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "").startswith(ALT):
            found += [output["data"]["image/png"] for output in cell["outputs"] if "data" in output]
    if len(found) != 1:
        raise ValueError(f"{chapter.name} holds {len(found)} figures whose alt text begins with {ALT!r}, not one")
    return base64.b64decode(found[0])


if __name__ == "__main__":
    FIGURE.write_bytes(read_figure())
