"""Does the built book work for a reader without a network? Every page, from file://, in headless Chromium."""

import json
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from tests.browser import ARGUMENTS, find_chromium

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
BUILT = ROOT / "_build" / ".built"  # `make book` touches it after a build without warnings
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *[entry["file"] for part in TOC["parts"] for entry in part["chapters"]]]

# Findings in the theme's own markup, outside the reach of this project: rule -> how the targets it may name end.
# Search, colour and fold buttons are labelled with other words than they show; the logo stands outside a landmark.
KNOWN = {
    "label-content-name-mismatch": (".search-button-field", ".theme-switch-button", ".nav-link", "summary"),
    "region": (".only-light", ".only-dark"),
}


@pytest.fixture(scope="module")
def book():
    sources = [ROOT / "_config.yml", ROOT / "_toc.yml", *(ROOT / "notebooks").glob("*.ipynb")]
    sources += [path for path in (ROOT / "book").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    if not BUILT.exists() or not (HTML / "index.html").exists():
        pytest.fail("the book is not built: run `make book`")
    newer = [path.relative_to(ROOT).as_posix() for path in sources if path.stat().st_mtime > BUILT.stat().st_mtime]
    if newer:
        pytest.fail(f"the built book is older than {', '.join(newer)}: run `make book`")
    return HTML


@pytest.fixture(scope="module")
def browser():
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def context(request, browser):
    context = browser.new_context(offline=True, color_scheme=request.param, viewport={"width": 1300, "height": 1000})
    context.set_default_timeout(20_000)
    yield context
    context.close()


class Visit:
    """One page and everything that went wrong on it."""

    def __init__(self, context, url):
        self.page = context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url[:120]}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_load_state("load")
        self.formulas = self.page.locator(".math").count()
        if self.formulas:
            self.page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            self.page.evaluate("MathJax.startup.promise")

    @property
    def external(self):
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]


def check_formulas(visit):
    drawn = visit.page.locator(".math mjx-container svg").count()
    assert drawn >= visit.formulas, f"{visit.formulas} formulas, {drawn} drawn"
    wrong = visit.page.locator("[data-mjx-error], mjx-merror, [data-mml-node=merror]").all_text_contents()
    assert not wrong, f"formulas with errors: {wrong}"


def frame(knob):
    """The one picture that a knob shows."""
    shown = [image for image in knob.locator("img").all() if image.is_visible()]
    assert len(shown) == 1, f"{len(shown)} frames are visible at once"
    return shown[0].get_attribute("src"), shown[0].get_attribute("alt")


def check_knob(knob):
    """Each slider, moved with the keyboard, changes the picture, its description and the value that is shown."""
    sliders = knob.locator("input[type=range]").all()
    assert sliders, "a knob without a slider"
    for slider in sliders:
        before, values = frame(knob), knob.locator("output").all_text_contents()
        at_end = slider.input_value() == slider.get_attribute("max")
        slider.focus()
        slider.press("ArrowLeft" if at_end else "ArrowRight")
        picture, alt = frame(knob)
        assert picture != before[0], "the slider moved, the picture did not change"
        assert alt != before[1], "the picture changed, its alt text did not"
        assert knob.locator("output").all_text_contents() != values, "the slider moved, the value did not change"


def check_accessible(page):
    """No serious or critical finding, and of the known rules none elsewhere than known."""
    # The theme turns dark after loading and fades its colours in; in the middle of it no contrast means anything.
    page.wait_for_function("document.getAnimations().every(animation => animation.playState !== 'running')")
    # This rule is off by default, being young; its findings are serious.
    found = Axe().run(page, options={"rules": {"label-content-name-mismatch": {"enabled": True}}})
    unknown = []
    for violation in found.response["violations"]:
        rule, impact = violation["id"], violation["impact"]
        targets = [str(target) for node in violation["nodes"] for target in node["target"]]
        targets = [target for target in targets if not target.endswith(KNOWN.get(rule, ()))]
        if targets and (rule in KNOWN or impact in ("serious", "critical")):
            unknown.append(f"{rule} ({impact}): {targets}")
    assert not unknown, "\n".join(unknown)


def knobs_in(name):
    """How many knobs the stored notebook of a page has."""
    path = ROOT / f"{name}.ipynb"
    if not path.exists():
        return 0
    cells = json.loads(path.read_text())["cells"]
    shown = ["".join(o.get("data", {}).get("text/html", "")) for cell in cells for o in cell.get("outputs", [])]
    return sum(html.count('class="jepa-knob"') for html in shown)


@pytest.mark.parametrize("name", PAGES)
def test_page(book, context, name):
    visit = Visit(context, (book / f"{name}.html").as_uri())
    check_formulas(visit)
    knobs = visit.page.locator(".jepa-knob").all()
    assert len(knobs) == knobs_in(name)
    for knob in knobs:
        check_knob(knob)
    assert visit.external == []
    assert visit.errors == []
    check_accessible(visit.page)  # last: axe itself asks for the style sheets again, which file:// refuses


@pytest.mark.parametrize("name", ["index", "search", "genindex"])
def test_pages_of_the_theme(book, context, name):
    visit = Visit(context, (book / f"{name}.html").as_uri())
    assert visit.external == []
    assert visit.errors == []


# --- pages made bad on purpose --------------------------------------------------------------------------------------

DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
DEAD_KNOB = f"""<div class="jepa-knob"><label>ratio <input type="range" min="0" max="2" value="0"></label>
<output>0</output><img alt="a dot" src="{DOT}" width="9" height="9"></div>"""


def page_of(context, tmp_path, body):
    path = tmp_path / "page.html"
    path.write_text(
        f'<!doctype html><html lang="en"><head><title>t</title></head><body><main><h1>t</h1>{body}</main></body></html>'
    )
    return Visit(context, path.as_uri())


def test_a_dead_knob_is_refused(context, tmp_path):
    visit = page_of(context, tmp_path, DEAD_KNOB)
    with pytest.raises(AssertionError, match="picture did not change"):
        check_knob(visit.page.locator(".jepa-knob").first)


def test_an_inaccessible_page_is_refused(context, tmp_path):
    visit = page_of(context, tmp_path, f'<img src="{DOT}"><button aria-label="Close">Open</button>')
    with pytest.raises(AssertionError, match=r"image-alt(.|\n)*label-content-name-mismatch"):
        check_accessible(visit.page)


def test_colours_are_judged_after_they_have_faded_in(context, tmp_path):
    fading = "<style>@keyframes fade { from { color: #fff } to { color: #000 } } p { animation: fade 1s }</style>"
    check_accessible(page_of(context, tmp_path, f'{fading}<p style="background: #fff">Read me</p>').page)


def test_errors_and_external_requests_are_seen(context, tmp_path):
    visit = page_of(
        context, tmp_path, '<script src="https://example.org/x.js"></script><script>undefined_name()</script>'
    )
    assert visit.external == ["https://example.org/x.js"]
    assert any("undefined_name" in error for error in visit.errors)


def test_an_undrawn_formula_is_refused(context, tmp_path):
    visit = page_of(context, tmp_path, "<p>x</p>")
    visit.formulas = 1
    with pytest.raises(AssertionError, match="1 formulas, 0 drawn"):
        check_formulas(visit)
