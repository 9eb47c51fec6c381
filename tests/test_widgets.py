"""The knob: a frame per setting, alt text per frame, the same bytes on every run, and a slider that really turns."""

import html
import os
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from jepa_lab import widgets
from jepa_lab.widgets import Knob, explore


def draw(ratio: float, scale: int = 1) -> Figure:
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.bar([0], [ratio * scale])
    ax.set(ylim=(0, 3), title="A bar")
    return fig


@pytest.fixture(scope="module")
def one() -> Knob:
    return explore(draw, ratio=[0.1, 0.5, 0.9])


@pytest.fixture(scope="module")
def two() -> Knob:
    return explore(draw, ratio=[0.1, 0.5, 0.9], scale=[1, 2], start={"ratio": 0.5, "scale": 2}, fmt={"ratio": "{:.0%}"})


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_frame_per_setting_and_none_left_open(one, two):
    assert plt.get_fignums() == []
    assert len({one.frame(ratio=r) for r in (0.1, 0.5, 0.9)}) == 3
    assert len(two.frames) == 6
    assert two.frame(ratio=0.9, scale=1) == one.frame(ratio=0.9)
    assert two.frame(ratio=0.9, scale=1) == two.frames[4]
    with pytest.raises(ValueError, match="ratio must be one of"):
        one.frame(ratio=0.2)
    with pytest.raises(ValueError, match="exactly ratio"):
        one.frame(scale=1)


def test_the_page_shows_the_start_and_hides_the_rest(two):
    tags = Tags(two._repr_html_())
    pictures = tags.all("img")
    assert [("hidden" in p, "display:none" in p["style"]) for p in pictures].count((False, False)) == 1
    shown = next(p for p in pictures if "hidden" not in p)
    assert b64decode(shown["src"].removeprefix("data:image/png;base64,")) == two.frame(ratio=0.5, scale=2)
    assert [(s["min"], s["max"], s["value"], s["aria-valuetext"]) for s in tags.all("input")] == [
        ("0", "2", "1", "50%"),
        ("0", "1", "1", "2"),
    ]


def test_every_frame_has_its_own_alt_text(one, two):
    alts = [p["alt"] for p in Tags(one._repr_html_()).all("img")]
    assert alts == ["A bar: ratio 0.1", "A bar: ratio 0.5", "A bar: ratio 0.9"]
    assert Tags(two._repr_html_()).all("img")[3]["alt"] == "A bar: ratio 50%, scale 2"
    spoken = explore(draw, alt=lambda ratio: f'"half" of {ratio}', ratio=[1.0, 2.0])
    assert [p["alt"] for p in Tags(spoken._repr_html_()).all("img")] == ['"half" of 1.0', '"half" of 2.0']
    named = explore(draw, alt="Coverage", ratio=[1.0, 2.0])
    assert named.alts[0] == "Coverage: ratio 1"


def test_two_runs_give_the_same_bytes_without_ids_or_scripts(two):
    again = explore(
        draw, ratio=[0.1, 0.5, 0.9], scale=[1, 2], start={"ratio": 0.5, "scale": 2}, fmt={"ratio": "{:.0%}"}
    )
    text = two._repr_html_()
    assert text == again._repr_html_()
    assert repr(two) == repr(again) == "Knob(ratio 10% to 90%, scale 1 to 2: 6 frames)"
    tags = Tags(text)
    assert not any("id" in attrs for _, attrs in tags.tags)
    assert not tags.all("script")


def test_frames_carry_no_version_and_few_bytes(one):
    png = one.frame(ratio=0.1)
    assert b"Software" not in png
    assert b"matplotlib" not in png
    assert len(png) < 6000
    assert one.width == 200  # two inches at 100 CSS pixels


def test_names_and_values_are_shown_and_escaped():
    knob = explore(lambda mask_ratio: draw(1.0), mask_ratio=["<a>", "b"])
    text = knob._repr_html_()
    assert "<label>mask ratio <input" in text
    assert "<output>&lt;a&gt;</output>" in text
    assert "<a>" not in text
    shown = explore(draw, fmt=lambda v: f"{v:.1f} s", ratio=[1.0, 2.0])
    assert shown.texts == {"ratio": ["1.0 s", "2.0 s"]}
    assert explore(draw, fmt=".2f", ratio=[1.0, 2.0]).texts == {"ratio": ["1.00", "2.00"]}


def test_the_bundle_has_both_views_and_leaks_no_id(one):
    bundle = one._repr_mimebundle_()
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == one.widget.model_id
    assert set(bundle) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert view["model_id"] not in bundle["text/plain"] + bundle["text/html"]
    assert bundle["text/plain"] == "Knob(ratio 0.1 to 0.9: 3 frames)"


def test_the_live_slider_changes_the_image():
    knob = explore(draw, ratio=[0.1, 0.5], scale=[1, 2], start={"ratio": 0.5, "scale": 1})
    ratio, scale, image = knob.widget.children
    assert (ratio.description, ratio.label) == ("ratio", "0.5")
    assert image.value == knob.frame(ratio=0.5, scale=1)
    ratio.value = 0
    assert image.value == knob.frame(ratio=0.1, scale=1)
    scale.label = "2"
    assert image.value == knob.frame(ratio=0.1, scale=2)
    assert image.tooltip is None  # an Image with a tooltip fails to draw in JupyterLab (ipywidgets 8.1)
    assert image.layout.width == "200px"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "one or two"),
        ({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, "one or two"),
        ({"ratio": [1.0]}, "at least 2 values"),
        ({"ratio": range(41)}, "41 frames, allowed are 40"),
        ({"ratio": range(7), "scale": range(6)}, "42 frames"),
        ({"ratio": [1.0, 2.0], "start": {"ratio": 3.0}}, "start: ratio must be one of"),
        ({"ratio": [1.0, 2.0], "start": {"x": 3.0}}, "start must set exactly ratio"),
    ],
)
def test_impossible_knobs_are_refused_before_anything_is_drawn(settings, words):
    def never(**values: float) -> Figure:
        raise AssertionError("drew a frame")

    with pytest.raises(ValueError, match=words):
        explore(never, **settings)


def test_too_heavy_jumping_or_missing_figures_are_refused(monkeypatch):
    with pytest.raises(TypeError, match="must return a matplotlib Figure, got NoneType at ratio 1"):
        explore(lambda ratio: None, ratio=[1, 2])
    with pytest.raises(ValueError, match="one size"):
        explore(lambda width: plt.figure(figsize=(width, 1)), width=[1, 2])
    monkeypatch.setattr(widgets, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="allowed are 1000"):
        explore(draw, ratio=[1.0, 2.0])
    assert plt.get_fignums() == []


# --- in a browser
# -------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(one, two, tmp_path_factory):
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine, and CI must have one")
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    path = tmp_path_factory.mktemp("page") / "knobs.html"
    # A style such as a theme may have: it must not bring hidden frames back.
    path.write_text(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Knobs</title>"
        "<style>img{display:block}</style>"
        f"</head><body><main><h1>Knobs</h1>{one._repr_html_()}{two._repr_html_()}</main></body></html>",
        encoding="utf-8",
    )
    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(path.as_uri())
        yield page
        browser.close()


def turn(slider, place: int) -> None:
    slider.evaluate("(s, v) => {s.value = v; s.dispatchEvent(new Event('input', {bubbles: true}))}", place)


@pytest.mark.browser
def test_the_slider_turns_on_a_page_without_a_kernel(page, one, two):
    first, second = page.locator(".jepa-knob").all()
    for knob, box in ((one, first), (two, second)):
        assert box.locator("img:visible").count() == 1
        sliders = box.locator("input").all()
        seen = set()
        for i, ratio in enumerate(knob.texts["ratio"]):
            turn(sliders[0], i)
            assert box.locator("output").first.inner_text() == ratio
            assert sliders[0].get_attribute("aria-valuetext") == ratio
            picture = box.locator("img:visible")
            assert picture.count() == 1
            assert f"ratio {ratio}" in picture.get_attribute("alt")
            assert box.locator("img:not([hidden])").get_attribute("alt") == picture.get_attribute("alt")
            seen.add(picture.screenshot())
        assert len(seen) == 3
    turn(second.locator("input").nth(0), 2)
    turn(second.locator("input").nth(1), 0)
    source = second.locator("img:visible").get_attribute("src")
    assert b64decode(source.removeprefix("data:image/png;base64,")) == two.frame(ratio=0.9, scale=1)
    assert page.problems == []


@pytest.mark.browser
def test_arrow_keys_turn_one_knob_and_leave_the_other(page):
    first, second = page.locator(".jepa-knob").all()
    other = second.locator("img:visible").get_attribute("alt")
    turn(first.locator("input"), 0)
    page.get_by_label("ratio").first.focus()
    page.keyboard.press("ArrowRight")
    assert first.locator("img:visible").get_attribute("alt") == "A bar: ratio 0.5"
    assert second.locator("img:visible").get_attribute("alt") == other


@pytest.mark.browser
def test_axe_finds_nothing(page):
    from axe_playwright_python.sync_playwright import Axe

    report = Axe().run(page).response
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in report["violations"]] == []


def test_the_turning_code_survives_escaping(one):
    code = Tags(one._repr_html_()).all("input")[0]["oninput"]
    assert code == widgets._TURN
    assert html.escape(code) in one._repr_html_()
    assert not re.search(r"[\n<]", code)
