"""Every slider and button of the pages, moved by keyboard in JupyterLab in a real browser: `make test-browser`.

Not part of `make test` (pytest collects files that begin with test_), because it needs Chromium and playwright.
Screenshots go to $MFMDA_SCREENSHOTS, else to a temporary folder that pytest names. $MFMDA_PATIENCE: seconds that the cells of a
page may take before the page fails.
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
from playwright.sync_api import Error, expect, sync_playwright

root = Path(__file__).resolve().parent.parent.parent
patience = float(os.environ.get("MFMDA_PATIENCE", 240))
pages = {
    "00_config": ["seed", "count"],
    "01_phantom": ["camera", "vcdr", "shot"],
    "03_ddpm": ["t", "schedule"],
    "05_adaptor": ["image", "shots seen", "adaptor", "gate"],
    "06_translate": ["start time", "guidance N", "guided until", "adaptation step"],
    "07_foundation": ["rank", "matrix"],
    "08_alignment": ["row", "column", "in picture"],
    "10_metrics": ["eye", "threshold"],
}
# JupyterLab shows an error as what a cell writes to stderr
error_output = r"""() => [...document.querySelectorAll("[data-mime-type$='jupyter.stderr'], [data-mime-type$='jupyter.error']")].map(e => e.innerText)
  .find(text => /Traceback \(most recent call last\)|^ *Cell In\[\d+\], line/m.test(text))"""
pixels = "img => { const c = document.createElement('canvas'); c.width = img.naturalWidth; c.height = img.naturalHeight; c.getContext('2d').drawImage(img, 0, 0); return c.toDataURL() }"
# a control or a picture that leaves its cell, text that is cut off, or two controls on top of each other
faults_of_layout = """panel => {
  const faults = [], edge = panel.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1
  for (const e of panel.querySelectorAll('label, .widget-readout, button, select, img')) {
    const name = e.textContent || e.tagName
    if (e.getBoundingClientRect().right > edge) faults.push(`${name} is cut off at the right`)
    const text = document.createRange(); text.selectNodeContents(e)
    if (e.tagName != 'IMG' && text.getBoundingClientRect().width > e.getBoundingClientRect().width + .01) faults.push(`${name} does not fit`)
  }
  const boxes = [...panel.querySelectorAll('.widget-slider, .widget-toggle-buttons')].map(e => [e, e.getBoundingClientRect()])
  boxes.forEach(([e, a], i) => boxes.slice(i + 1).forEach(([f, b]) => {
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1) faults.push(`${e.textContent} overlaps ${f.textContent}`)
  }))
  return faults
}"""


def up_to_explorer(name):
    "The page as a reader runs it: its code as far as the sliders, with the picture that is stored for them."
    nb = json.loads((root / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = [c for c in nb["cells"] if c["cell_type"] == "code"]
    last = next(i for i, c in enumerate(code) if "explorer = Explorer(" in "".join(c["source"]))
    return nb | dict(cells=[c | dict(outputs=[]) for c in code[:last]] + [code[last]])


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("MFMDA_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    print(f"\nscreenshots: {folder}")


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "A JupyterLab of its own: (address of a page's name, function that stops a page's kernel)."
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(8)
    (home / "pages").mkdir()
    for name in pages:
        (home / "pages" / f"{name}.ipynb").write_text(json.dumps(up_to_explorer(name)), encoding="utf-8")
    # all cells are in the browser at once, and no dialog asks about news
    for plugin, setting in (("notebook-extension/tracker", dict(windowingMode="none")), ("apputils-extension/notification", dict(fetchNews="false", checkForUpdates=False))):
        file = home / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | dict(PYTHONPATH=str(root), JUPYTERLAB_SETTINGS_DIR=str(home / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"), JUPYTER_CONFIG_DIR=str(home / "config"))
    env.pop("MPLBACKEND", None)
    log = home / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1",
                                   f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'pages'}"], env=env, stdout=file, stderr=file)

    def api(path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", method=method, headers=dict(Authorization=f"token {token}"))
        return urllib.request.urlopen(request, timeout=60).read()

    def stop_kernel(name):
        for session in json.loads(api("sessions")):
            if session["path"] == f"{name}.ipynb":
                api(f"sessions/{session['id']}", "DELETE")

    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                api("status")
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, f"JupyterLab did not start:\n{log.read_text()}"
                time.sleep(.2)
        yield lambda name: f"http://127.0.0.1:{port}/doc/tree/{name}.ipynb?token={token}", stop_kernel
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=os.environ.get("CHROMIUM") or "/usr/bin/chromium", args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        yield browser
        browser.close()


class Reader:
    "One page in one tab."

    def __init__(self, name, browser, address, shots):
        self.name, self.shots = name, shots
        self.page = browser.new_page(viewport=dict(width=1000, height=900))
        self.cell = self.page.locator(".jp-CodeCell").last
        self.live = self.cell.locator("img.widget-image")
        try:
            self.page.goto(address(name), timeout=120_000)
            still = self.cell.locator(".jp-OutputArea-output img")
            expect(still).to_be_visible(timeout=120_000)                               # before any kernel has run
            self.says("the stored page", still.evaluate("img => img.naturalWidth") > 250 and "Error displaying widget" not in self.page.inner_text("body"), "its picture does not show")
            self.stored = still.evaluate(pixels)
            self.cell.locator(".jp-Cell-outputArea").screenshot(path=shots / f"{name}_0_stored.png")
            self.page.get_by_role("menuitem", name="Run", exact=True).click()
            self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            self.fault = None
        except (Error, AssertionError) as fault:                                       # told by the test of this page, not of the one before
            self.fault = fault

    def says(self, control, fine, seen):
        "Fail unless `fine`, saying which page and control, and what was seen."
        if not fine:
            self.page.screenshot(path=self.shots / f"{self.name}_failed.png")
        assert fine, f"{self.name}, {control}: {seen} (screenshot {self.shots / (self.name + '_failed.png')})"

    def waits(self, control, condition, arg, seconds, otherwise):
        "Wait for a condition in the browser, or for an error in any output."
        try:
            self.page.wait_for_function(f"arg => ({error_output})() || ({condition})(arg)", arg=arg, timeout=1000 * seconds, polling=150)
            missing = None
        except Error as fault:
            prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
            missing = f"{otherwise()} after {seconds:.0f} s; {sum('*' in p for p in prompts)} of {len(prompts)} cells still to run ({str(fault).splitlines()[0]})"
        if error := self.page.evaluate(error_output):
            self.says(control, False, "an error:\n" + error[-3000:])
        self.says(control, missing is None, missing)

    def value(self, control):
        handle = control.locator(".noUi-handle")
        return control.locator(".widget-readout").inner_text() if handle.count() else control.locator("button.mod-active").inner_text()

    def move(self, control):
        "One step by keyboard, to the next choice or, at the end of the range, back."
        handle, buttons = control.locator(".noUi-handle"), control.locator("button")
        if handle.count():
            at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
            handle.press("ArrowLeft" if at_end else "ArrowRight")
        else:
            at = buttons.evaluate_all("all => all.findIndex(b => b.classList.contains('mod-active'))")
            buttons.nth(at + 1 if at + 1 < buttons.count() else at - 1).press("Space")


@pytest.fixture(scope="session")
def read(request, lab, browser, shots):
    "Open a page, and let the next one's cells run meanwhile."
    names = [item.callspec.params["name"] for item in request.session.items]
    address, stop_kernel = lab
    readers = {}

    def open_page(name):
        for each in names[names.index(name):][:2]:
            if each not in readers:
                readers[each] = Reader(each, browser, address, shots)
        return readers[name]

    def close_page(name):
        readers[name].page.close()
        stop_kernel(name)

    return open_page, close_page


@pytest.mark.parametrize("name", pages)
def test_each_control_changes_the_picture(name, read, shots):
    open_page, close_page = read
    started = time.monotonic()
    reader = open_page(name)
    try:
        page, cell, live = reader.page, reader.cell, reader.live
        assert reader.fault is None, f"{name}, opening the page: {reader.fault}"
        reader.waits("running the cells", "selector => document.querySelector(selector)?.naturalWidth", "img.widget-image", patience, lambda: "no live picture")
        print(f"{name}: live after {time.monotonic() - started:.1f} s")
        controls = cell.locator(".widget-slider, .widget-toggle-buttons, .widget-dropdown")
        labels = [label.strip() for label in controls.locator("label.widget-label").all_inner_texts()]
        reader.says("its controls", labels == pages[name], f"{labels} instead of {pages[name]}")
        cell.scroll_into_view_if_needed()
        seen = live.evaluate(pixels)
        if seen != reader.stored:
            print(f"{name}: the first picture differs from the stored one in this environment")
        cell.locator(".jp-Cell-outputArea").screenshot(path=shots / f"{name}_1_live.png")
        for i, label in enumerate(pages[name]):
            control, began = controls.nth(i), time.monotonic()
            before = reader.value(control)
            reader.move(control)
            reader.waits(f"control {label!r}", "([selector, seen]) => { const img = document.querySelector(selector); return img.complete && img.naturalWidth && (" + pixels + ")(img) != seen }",
                         ["img.widget-image", seen], 120, lambda: f"moved from {before!r} to {reader.value(control)!r}, the picture stayed as it was")
            seen, after = live.evaluate(pixels), reader.value(control)
            reader.says(f"control {label!r}", after != before, f"the picture changed, but the control still shows {before!r}")
            print(f"{name}: {label} {before} -> {after}, a new picture in {time.monotonic() - began:.1f} s")
            cell.locator(".jp-Cell-outputArea").screenshot(path=shots / f"{name}_{i + 2}_{label.replace(' ', '_')}.png")
        faults = cell.locator(".jupyter-widgets.widget-vbox").first.evaluate(faults_of_layout)
        reader.says("layout", not faults, "; ".join(faults))
        warnings = cell.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
        reader.says("its output", not warnings, "a warning beside the picture:\n" + "\n".join(warnings)[-2000:])
    finally:
        close_page(name)
