"""What happens when I turn this? A knob over frames drawn in advance, live in a kernel and on a page."""

import itertools
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from io import BytesIO
from math import prod
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

MAX_FRAMES = 40
MAX_BYTES = 400_000  # of base64 text: what the frames add to the page and to the stored notebook
DPI = 110

Format = str | Callable[[Any], str]

# Inline, without a script tag and without ids: the HTML of a knob is the same on every run, and any number
# of knobs share a page. The last slider varies fastest, as in itertools.product. Both `hidden` and
# `display`: a theme that gives every image a display would override `hidden` alone.
_TURN = (
    "const k=this.closest('.jepa-knob');let n=0;"
    "k.querySelectorAll('label').forEach(l=>{const r=l.querySelector('input'),"
    "t=JSON.parse(r.dataset.values)[r.value];n=n*(+r.max+1)+ +r.value;"
    "r.setAttribute('aria-valuetext',t);l.nextElementSibling.textContent=t});"
    "k.querySelectorAll('img').forEach((f,i)=>{f.hidden=i!==n;f.style.display=i===n?'block':'none'})"
)


@dataclass(frozen=True, repr=False)
class Knob:
    """One or two sliders over frames drawn in advance; made by ``explore``.

    Book: chapter 03.
    """

    knobs: dict[str, list]  # the values of each knob
    texts: dict[str, list[str]]  # the same, as shown
    frames: list[bytes]  # PNGs, the last knob varying fastest
    alts: list[str]
    start: list[int]  # the first place of each slider
    width: int  # CSS pixels

    def frame(self, **values: Any) -> bytes:
        """Return the PNG of one setting.

        Raises: ValueError if a knob is missing or unknown, or has no such value.
        Book: chapter 03.
        """
        return self.frames[self._number(_places(self.knobs, values, "values"))]

    def _number(self, places: Sequence[int]) -> int:
        n = 0
        for place, values in zip(places, self.knobs.values(), strict=True):
            n = n * len(values) + place
        return n

    def __repr__(self) -> str:
        spans = (f"{_label(name)} {texts[0]} to {texts[-1]}" for name, texts in self.texts.items())
        return f"Knob({', '.join(spans)}: {len(self.frames)} frames)"

    def _repr_html_(self) -> str:
        parts = []
        for (name, texts), place in zip(self.texts.items(), self.start, strict=True):
            now, every = escape(texts[place]), escape(json.dumps(texts))
            # autocomplete=off: after a reload the browser would restore the slider but not the picture.
            parts.append(
                f'<div class="jepa-knob-slider"><label>{escape(_label(name))} <input type="range" min="0" '
                f'max="{len(texts) - 1}" step="1" value="{place}" autocomplete="off" data-values="{every}" '
                f'aria-valuetext="{now}" style="width:20em;max-width:60vw;vertical-align:middle" '
                f'oninput="{escape(_TURN)}"></label> <output>{now}</output></div>'
            )
        for i, (png, alt) in enumerate(zip(self.frames, self.alts, strict=True)):
            display, hidden = ("block", "") if i == self._number(self.start) else ("none", " hidden")
            parts.append(
                f'<img alt="{escape(alt)}" width="{self.width}"{hidden} '
                f'style="display:{display};max-width:100%;height:auto" '
                f'src="data:image/png;base64,{b64encode(png).decode()}">'
            )
        return f'<div class="jepa-knob">{"".join(parts)}</div>'

    @cached_property
    def widget(self) -> Any:
        """The live view for a running kernel: ipywidgets sliders over one image of fixed width."""
        import ipywidgets

        places = list(self.start)
        image = ipywidgets.Image(value=self.frames[self._number(places)], format="png")
        # A fixed width: the image would stretch to the width of the cell otherwise. No tooltip for the alt text:
        # with one, JupyterLab shows an error in place of the image (ipywidgets 8.1).
        image.layout = {"width": f"{self.width}px", "max_width": "100%"}
        sliders = []
        for k, (name, texts) in enumerate(self.texts.items()):
            slider = ipywidgets.SelectionSlider(
                options=[(text, i) for i, text in enumerate(texts)],
                value=places[k],
                description=_label(name),
                style={"description_width": "initial"},
                layout={"width": "26em"},
            )

            def turn(change: dict, k: int = k) -> None:
                places[k] = change["new"]
                image.value = self.frames[self._number(places)]

            slider.observe(turn, names="value")
            sliders.append(slider)
        return ipywidgets.VBox([*sliders, image])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        # Only the view: the widget's own text/plain carries its id, which differs from run to run.
        view = "application/vnd.jupyter.widget-view+json"
        return {
            "text/plain": repr(self),
            "text/html": self._repr_html_(),
            view: self.widget._repr_mimebundle_()[view],
        }


def explore(
    draw: Callable[..., Figure],
    *,
    alt: Format | None = None,
    start: Mapping[str, Any] | None = None,
    fmt: Format | Mapping[str, Format] | None = None,
    **knobs: Sequence,
) -> Knob:
    """Draw one frame per setting of one or two knobs and return the knob that turns through them.

    ``draw(**values)`` returns a Figure. ``fmt`` shows a value ("{:.0%}", ".2f" or a function; or one of
    these per knob). ``alt`` describes a frame: a function of the values, or a text to which the values are
    added. ``start`` is the first setting, by default the first value of each knob.

    Raises: ValueError if there are too few or too many knobs, values, frames or bytes, or the frames differ
        in size;
        TypeError if ``draw`` returns something other than a Figure.
    Book: chapter 03.
    """
    if not 1 <= len(knobs) <= 2:
        raise ValueError(f"knobs must be one or two, as name=values, got {len(knobs)}: {list(knobs)}")
    values = {name: list(options) for name, options in knobs.items()}
    for name, options in values.items():
        if len(options) < 2:
            raise ValueError(f"knob {name!r} must have at least 2 values, got {options}")
    number = prod(len(options) for options in values.values())
    if number > MAX_FRAMES:
        raise ValueError(f"the knobs make {number} frames, allowed are {MAX_FRAMES}: take fewer values")
    formats = fmt if isinstance(fmt, Mapping) else dict.fromkeys(values, fmt)
    texts = {name: [_text(v, formats.get(name)) for v in options] for name, options in values.items()}
    places = _places(values, start, "start") if start is not None else [0] * len(values)

    frames, alts, sizes = [], [], set()
    for setting in itertools.product(*(range(len(options)) for options in values.values())):
        now = {name: values[name][i] for name, i in zip(values, setting, strict=True)}
        words = ", ".join(f"{_label(name)} {texts[name][i]}" for name, i in zip(values, setting, strict=True))
        fig = draw(**now)
        if not isinstance(fig, Figure):
            raise TypeError(f"draw must return a matplotlib Figure, got {type(fig).__name__} at {words}")
        plt.close(fig)  # else a notebook would show the frames that draw left open once more, below the knob
        png, size = _png(fig)
        frames.append(png)
        alts.append(alt(**now) if callable(alt) else f"{alt or _title(fig)}: {words}")
        sizes.add(size)
    if len(sizes) > 1:
        raise ValueError(f"draw must return figures of one size, got {sorted(sizes)} pixels")
    weight = sum(len(b64encode(png)) for png in frames)
    if weight > MAX_BYTES:
        raise ValueError(f"the {number} frames take {weight} bytes, allowed are {MAX_BYTES}: take fewer values")
    return Knob(values, texts, frames, alts, places, round(sizes.pop()[0] * 100 / DPI))


def _label(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any, fmt: Format | None) -> str:
    if callable(fmt):
        return str(fmt(value))
    if fmt is not None:
        return fmt.format(value) if "{" in fmt else format(value, fmt)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _title(fig: Figure) -> str:
    titles = [fig.get_suptitle(), *(ax.get_title(side) for ax in fig.axes for side in ("left", "center"))]
    return next(filter(None, titles), "Figure")


def _places(knobs: Mapping[str, list], values: Mapping[str, Any], argument: str) -> list[int]:
    if set(values) != set(knobs):
        raise ValueError(f"{argument} must set exactly {', '.join(knobs)}, got {list(values)}")
    for name, value in values.items():
        if value not in knobs[name]:
            raise ValueError(f"{argument}: {name} must be one of {knobs[name]}, got {value!r}")
    return [options.index(values[name]) for name, options in knobs.items()]


def _png(fig: Figure) -> tuple[bytes, tuple[int, int]]:
    """Render at a fixed size and dpi, with a palette (a third of the bytes) and no version inside."""
    raw, small = BytesIO(), BytesIO()
    with plt.rc_context({"savefig.bbox": "standard"}):  # cropping to the ink would make the frames jump
        fig.savefig(raw, format="png", dpi=DPI)
    with Image.open(raw) as picture:
        flat = picture.convert("RGB").quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat.save(small, format="PNG", optimize=True)
    return small.getvalue(), flat.size
