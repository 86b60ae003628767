"""Every slider and button of the pages, moved by keyboard in JupyterLab in a real browser.

`make test-browser` runs it, not `make test` (pytest collects files that begin with test_): it needs
Chromium and playwright. Screenshots go to $MFMDA_SCREENSHOTS, else to a temporary folder that
pytest names. $MFMDA_PATIENCE: seconds that the cells of a page may take before the page fails.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from pages import has_explorer
from playwright.sync_api import Error, expect, sync_playwright

root = Path(__file__).resolve().parent.parent.parent
patience = float(os.environ.get("MFMDA_PATIENCE", 240))
pages = {  # page -> its controls, from left to right
    "04_data.phantom": ["camera", "vcdr", "shot"],
    "10_stage1.ddpm": ["t", "schedule"],
    "12_stage1.adaptor": ["image", "shots seen", "adaptor", "gate"],
    "15_stage1.translate": ["start time", "guidance N", "guided until", "adaptation step"],
    "21_stage2.mae": ["rank", "matrix"],
    "22_stage2.alignment": ["row", "column", "in picture"],
    "30_study.metrics": ["eye", "threshold"],
}
# JupyterLab shows an error as what a cell writes to stderr
error_output = r"""(() => {
  const kinds = "[data-mime-type$='jupyter.stderr'], [data-mime-type$='jupyter.error']"
  const error = /Traceback \(most recent call last\)|^ *Cell In\[\d+\], line/m
  return [...document.querySelectorAll(kinds)].map(e => e.innerText).find(t => error.test(t))
})()"""
pixels = """img => {
  const canvas = document.createElement('canvas')
  canvas.width = img.naturalWidth
  canvas.height = img.naturalHeight
  canvas.getContext('2d').drawImage(img, 0, 0)
  return canvas.toDataURL()
}"""
picture_is_there = "selector => document.querySelector(selector)?.naturalWidth"
picture_is_new = f"""([selector, seen]) => {{
  const img = document.querySelector(selector)
  return img.complete && img.naturalWidth && ({pixels})(img) != seen
}}"""
# a control or a picture that leaves its cell, text that is cut off, two controls that overlap
faults_of_layout = """panel => {
  const faults = []
  const edge = panel.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1
  for (const e of panel.querySelectorAll('label, .widget-readout, button, select, img')) {
    const name = e.textContent || e.tagName, box = e.getBoundingClientRect()
    if (box.right > edge) faults.push(`${name} is cut off at the right`)
    const text = document.createRange()
    text.selectNodeContents(e)
    const wider = text.getBoundingClientRect().width > box.width + .01
    if (e.tagName != 'IMG' && wider) faults.push(`${name} does not fit`)
  }
  const controls = panel.querySelectorAll('.widget-slider, .widget-toggle-buttons')
  const boxes = [...controls].map(e => [e, e.getBoundingClientRect()])
  boxes.forEach(([e, a], i) => boxes.slice(i + 1).forEach(([f, b]) => {
    const beside = a.left >= b.right - 1 || b.left >= a.right - 1
    const above = a.top >= b.bottom - 1 || b.top >= a.bottom - 1
    if (!beside && !above) faults.push(`${e.textContent} overlaps ${f.textContent}`)
  }))
  return faults
}"""


def source_cells(name):
    "The code cells of a page."
    nb = json.loads((root / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return nb, [c for c in nb["cells"] if c["cell_type"] == "code"]


def up_to_explorer(name):
    "The page as a reader runs it: its code as far as the sliders, and their stored picture."
    nb, code = source_cells(name)
    last = next(i for i, cell in enumerate(code) if has_explorer(cell))
    before = [cell | dict(outputs=[]) for cell in code[:last]]
    return nb | dict(cells=[*before, code[last]])


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    folder = os.environ.get("MFMDA_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    print(f"\nscreenshots: {folder}")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def write_settings(folder):
    "All cells are in the browser at once, and no dialog asks about news."
    for plugin, setting in {
        "notebook-extension/tracker": dict(windowingMode="none"),
        "apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False),
    }.items():
        file = folder / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))


def start_lab(home, port, token):
    "A JupyterLab whose root is home/pages and whose log is home/lab.log."
    env = os.environ | dict(
        PYTHONPATH=os.pathsep.join([str(root), str(root / "nbs")]),  # nbs/ holds explorer.py
        JUPYTERLAB_SETTINGS_DIR=str(home / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"),
        JUPYTER_CONFIG_DIR=str(home / "config"),
    )
    env.pop("MPLBACKEND", None)
    options = [
        "--no-browser",
        "--allow-root",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.ip=127.0.0.1",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={home / 'pages'}",
    ]
    with (home / "lab.log").open("w") as log:
        command = [sys.executable, "-m", "jupyter", "lab", *options]
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)


def wait_until_up(server, api, log):
    deadline = time.monotonic() + 120
    while True:
        try:
            return api("status")
        except OSError:
            alive = server.poll() is None and time.monotonic() < deadline
            assert alive, f"JupyterLab did not start:\n{log.read_text()}"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "A JupyterLab of its own: (address of a page's name, function that stops a page's kernel)."
    home, token, port = tmp_path_factory.mktemp("lab"), secrets.token_hex(8), free_port()
    (home / "pages").mkdir()
    for name in pages:
        page = json.dumps(up_to_explorer(name))
        (home / "pages" / f"{name}.ipynb").write_text(page, encoding="utf-8")
    write_settings(home / "settings")
    server = start_lab(home, port, token)

    def address(name):
        return f"http://127.0.0.1:{port}/doc/tree/{name}.ipynb?token={token}"

    def api(path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", method=method)
        request.add_header("Authorization", f"token {token}")
        return urllib.request.urlopen(request, timeout=60).read()

    def stop_kernel(name):
        for session in json.loads(api("sessions")):
            if session["path"] == f"{name}.ipynb":
                api(f"sessions/{session['id']}", "DELETE")

    try:
        wait_until_up(server, api, home / "lab.log")
        yield address, stop_kernel
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="session")
def browser():
    chromium = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


class Reader:
    "One page in one tab."

    def __init__(self, name, browser, address, shots):
        self.name, self.shots = name, shots
        self.page = browser.new_page(viewport=dict(width=1000, height=900))
        self.cell = self.page.locator(".jp-CodeCell").last
        self.live = self.cell.locator("img.widget-image")
        self.fault = None
        try:
            self.open(address(name))
        except (Error, AssertionError) as fault:  # told by this page's test, not the one before
            self.fault = fault

    def open(self, address):
        "Look at the page as it is stored, before any kernel has run; then run it."
        self.page.goto(address, timeout=120_000)
        still = self.cell.locator(".jp-OutputArea-output img")
        expect(still).to_be_visible(timeout=120_000)
        shown = still.evaluate("img => img.naturalWidth") > 250
        shown = shown and "Error displaying widget" not in self.page.inner_text("body")
        self.says("the stored page", shown, "its picture does not show")
        self.stored = still.evaluate(pixels)
        self.screenshot("0_stored")
        for item in ("Run", "Run All Cells"):
            self.page.get_by_role("menuitem", name=item, exact=True).click()

    def screenshot(self, what):
        file = self.shots / f"{self.name}_{what}.png"
        self.cell.locator(".jp-Cell-outputArea").screenshot(path=file)

    def says(self, control, fine, seen):
        "Fail unless `fine`, saying which page and control, and what was seen."
        if fine:
            return
        file = self.shots / f"{self.name}_failed.png"
        self.page.screenshot(path=file)
        raise AssertionError(f"{self.name}, {control}: {seen} (screenshot {file})")

    def waits(self, control, condition, arg, seconds, otherwise):
        "Wait for a condition in the browser, or for an error in any output."
        missing = None
        try:
            self.page.wait_for_function(
                f"arg => {error_output} || ({condition})(arg)",
                arg=arg,
                timeout=1000 * seconds,
                polling=150,
            )
        except Error as fault:
            prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
            running = f"{sum('*' in p for p in prompts)} of {len(prompts)} cells still to run"
            why = str(fault).splitlines()[0]
            missing = f"{otherwise()} after {seconds:.0f} s; {running} ({why})"
        error = self.page.evaluate(error_output)
        self.says(control, not error, f"an error:\n{(error or '')[-3000:]}")
        self.says(control, missing is None, missing)

    def value(self, control):
        if control.locator(".noUi-handle").count():
            return control.locator(".widget-readout").inner_text()
        return control.locator("button.mod-active").inner_text()

    def move(self, control):
        "One step by keyboard, to the next choice or, at the end of the range, back."
        handle, buttons = control.locator(".noUi-handle"), control.locator("button")
        if handle.count():
            at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute(
                "aria-valuemax"
            )
            handle.press("ArrowLeft" if at_end else "ArrowRight")
            return
        active = "all => all.findIndex(b => b.classList.contains('mod-active'))"
        at = buttons.evaluate_all(active)
        buttons.nth(at + 1 if at + 1 < buttons.count() else at - 1).press("Space")

    def moves(self, label, control, seen):
        "Move one control and wait for its picture; returns what is then seen."
        began, before = time.monotonic(), self.value(control)
        self.move(control)
        self.waits(
            f"control {label!r}",
            picture_is_new,
            ["img.widget-image", seen],
            120,
            lambda: f"moved from {before!r} to {self.value(control)!r}, the picture stayed",
        )
        after = self.value(control)
        still = f"the picture changed, but the control still shows {before!r}"
        self.says(f"control {label!r}", after != before, still)
        took = time.monotonic() - began
        print(f"{self.name}: {label} {before} -> {after}, a new picture in {took:.1f} s")
        return self.live.evaluate(pixels)


@pytest.fixture(scope="session")
def read(request, lab, browser, shots):
    "Open a page, and let the next one's cells run meanwhile."
    asked = [item for item in request.session.items if hasattr(item, "callspec")]
    names = [item.callspec.params["name"] for item in asked]
    address, stop_kernel = lab
    readers = {}

    def open_page(name):
        for each in names[names.index(name) :][:2]:
            if each not in readers:
                readers[each] = Reader(each, browser, address, shots)
        return readers[name]

    def close_page(name):
        readers[name].page.close()
        stop_kernel(name)

    return open_page, close_page


def test_every_explorer_is_moved_here():
    found = [p.stem for p in sorted((root / "nbs").glob("*.ipynb"))]
    assert list(pages) == [n for n in found if any(map(has_explorer, source_cells(n)[1]))]


@pytest.mark.parametrize("name", pages)
def test_each_control_changes_the_picture(name, read):
    open_page, close_page = read
    started = time.monotonic()
    reader = open_page(name)
    try:
        assert reader.fault is None, f"{name}, opening the page: {reader.fault}"
        reader.waits(
            "running the cells",
            picture_is_there,
            "img.widget-image",
            patience,
            lambda: "no live picture",
        )
        print(f"{name}: live after {time.monotonic() - started:.1f} s")
        move_all(reader, pages[name])
        check_cell(reader)
    finally:
        close_page(name)


def move_all(reader, expected):
    "Every control is there, and each changes the picture."
    controls = reader.cell.locator(".widget-slider, .widget-toggle-buttons, .widget-dropdown")
    labels = controls.locator("label.widget-label").all_inner_texts()
    labels = [label.strip() for label in labels]
    reader.says("its controls", labels == expected, f"{labels} instead of {expected}")
    reader.cell.scroll_into_view_if_needed()
    seen = reader.live.evaluate(pixels)
    if seen != reader.stored:
        print(f"{reader.name}: the first picture differs from the stored one here")
    reader.screenshot("1_live")
    for i, label in enumerate(labels):
        seen = reader.moves(label, controls.nth(i), seen)
        reader.screenshot(f"{i + 2}_{label.replace(' ', '_')}")


def check_cell(reader):
    "Nothing is cut off or overlaps, and no warning stands beside the picture."
    panel = reader.cell.locator(".jupyter-widgets.widget-vbox").first
    faults = panel.evaluate(faults_of_layout)
    reader.says("layout", not faults, "; ".join(faults))
    stderr = "[data-mime-type='application/vnd.jupyter.stderr']"
    warnings = "\n".join(reader.cell.locator(stderr).all_inner_texts())
    reader.says(
        "its output", not warnings, f"a warning beside the picture:\n{warnings[-2000:]}"
    )
