"""Does a chapter live in JupyterLab? A real server, headless Chromium, all cells run, the slider moved by keyboard."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.browser import ARGUMENTS, find_chromium

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = "03_masks.ipynb"
START, RUN, DRAW = 90, 300, 30  # seconds: server and page, whole chapter, one turn of the knob; busy machines are slow

# No windowing: all cells are in the page, also those out of sight. No news: nothing is asked of the network.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    """The address of a running JupyterLab over a copy of the chapters, untouched by the user's settings."""
    chapters = tmp_path / "book" / "notebooks"
    shutil.copytree(ROOT / "notebooks", chapters)
    for path in chapters.glob("*.ipynb"):  # without stored outputs: what is seen was made by the live kernel
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    if (ROOT / "results").is_dir():
        shutil.copytree(ROOT / "results", tmp_path / "book" / "results")
    for name, content in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(tmp_path / folder) for name, folder in folders.items()}
    environment |= {"OMP_NUM_THREADS": "1"}
    port, token = free_port(), secrets.token_hex(16)
    log = tmp_path / "lab.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={chapters}", f"--IdentityProvider.token={token}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, cwd=chapters, stdout=output, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/api/status?token={token}", server, log)
        yield address, token
    finally:
        server.terminate()  # the server ends its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for(url, server, log):
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer:\n{log.read_text()[-3000:]}")


def wait_for_kernel(address, token):
    """Until the page is connected to an idle kernel. JupyterLab drops what is run before, without a word."""
    deadline = time.monotonic() + START
    kernels = []
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/api/kernels?token={token}", timeout=5) as answer:
                kernels = json.load(answer)
        except OSError:  # the server answers 500 while a kernel is being made
            kernels = []
        if any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels):
            return
        time.sleep(0.3)
    pytest.fail(f"no kernel became idle: {kernels}")


def run_all(page, cells):
    """Run everything, and wait until every code cell has its number."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(
        """([cells]) => {
            const found = document.querySelectorAll('.jp-CodeCell .jp-InputPrompt');
            const prompts = [...found].map(prompt => prompt.textContent.trim());
            return prompts.includes(`[${cells}]:`) && !prompts.includes('[*]:');
        }""",
        arg=[cells],
        timeout=RUN * 1000,
    )
    error = page.locator(
        "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"
    )
    assert error.count() == 0, error.first.inner_text()


def test_a_chapter_runs_and_its_knob_turns(lab):
    path, (address, token) = find_chromium(), lab
    notebook = json.loads((ROOT / "notebooks" / CHAPTER).read_text())
    cells = sum(cell["cell_type"] == "code" and bool("".join(cell["source"]).strip()) for cell in notebook["cells"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(START * 1000)
        try:
            page.goto(f"{address}/lab/tree/{CHAPTER}?token={token}&reset")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
            wait_for_kernel(address, token)
            page.locator(".jp-StatusBar-TextItem", has_text="| Idle").wait_for()
            run_all(page, cells)

            box = page.locator(".jupyter-widgets.widget-vbox", has=page.locator("img.widget-image")).first
            handle, picture = box.locator(".noUi-handle").first, box.locator("img.widget-image")
            picture.scroll_into_view_if_needed()
            before, value = picture.get_attribute("src"), handle.get_attribute("aria-valuetext")
            handle.focus()
            handle.press(
                "ArrowLeft"
                if handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
                else "ArrowRight"
            )
            expect(picture).not_to_have_attribute("src", before, timeout=DRAW * 1000)
            expect(handle).not_to_have_attribute("aria-valuetext", value, timeout=DRAW * 1000)
            width = picture.evaluate("image => image.naturalWidth")
            assert width > 0, "the picture did not load"
        finally:
            browser.close()
