"""Every slider and menu of the pages, moved by keyboard in JupyterLab in a real browser: `make test-browser`.

Not part of `make test` (pytest collects files that begin with test_), because it needs Chromium and playwright.
Screenshots go to $MFMDA_SCREENSHOTS, else to a temporary folder that pytest names.
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
from playwright.sync_api import expect, sync_playwright

root = Path(__file__).resolve().parent.parent.parent
patience = float(os.environ.get("MFMDA_PATIENCE", 600))  # seconds that the cells of a page may take
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
bytes_of = "img => { const c = document.createElement('canvas'); c.width = img.naturalWidth; c.height = img.naturalHeight; c.getContext('2d').drawImage(img, 0, 0); return c.toDataURL() }"


def up_to_explorer(name):
    "The page as a reader runs it: its code as far as the sliders, with the outputs that are stored for them."
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
    "A JupyterLab of its own: (address of a page's name, function that stops all kernels)."
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
    log = (home / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1",
                               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'pages'}"], env=env, stdout=log, stderr=log)

    def api(path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", method=method, headers=dict(Authorization=f"token {token}"))
        return urllib.request.urlopen(request, timeout=30).read()

    def stop_kernels():
        for kernel in json.loads(api("kernels")):
            api(f"kernels/{kernel['id']}", "DELETE")

    try:
        for _ in range(240):
            try:
                api("status")
                break
            except OSError:
                assert server.poll() is None, (home / "lab.log").read_text()
                time.sleep(.5)
        yield lambda name: f"http://127.0.0.1:{port}/doc/tree/{name}.ipynb?token={token}", stop_kernels
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=os.environ.get("CHROMIUM") or "/usr/bin/chromium", args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        yield browser
        browser.close()


def move(control):
    "One step by keyboard, away from the end of the range if it is there."
    handle = control.locator(".noUi-handle")
    if handle.count():
        at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.focus()
        handle.press("ArrowLeft" if at_end else "ArrowRight")
    else:
        menu = control.locator("select")
        at_end = menu.evaluate("m => m.selectedIndex == m.options.length - 1")
        menu.focus()
        menu.press("ArrowUp" if at_end else "ArrowDown")


@pytest.mark.parametrize("name", pages)
def test_each_control_changes_the_picture(name, lab, browser, shots):
    address, stop_kernels = lab
    page = browser.new_page(viewport=dict(width=1000, height=900))
    try:
        page.goto(address(name), timeout=120_000)
        cell = page.locator(".jp-CodeCell").last
        still = cell.locator(".jp-OutputArea-output img")
        expect(still).to_be_visible(timeout=120_000)                               # before any kernel has run
        assert still.evaluate("img => img.naturalWidth") > 250 and "Error displaying widget" not in page.inner_text("body")
        still.scroll_into_view_if_needed()
        cell.screenshot(path=shots / f"{name}_0_stored.png")
        before_run = still.evaluate(bytes_of)

        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        picture = cell.locator("img.widget-image")
        expect(picture).to_be_visible(timeout=1000 * patience)
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        controls = cell.locator(".jupyter-widgets.widget-inline-hbox").filter(has=page.locator(".noUi-handle, select"))
        assert [label.strip() for label in controls.locator("label.widget-label").all_inner_texts()] == pages[name]
        seen = picture.evaluate(bytes_of)
        if seen != before_run:
            print(f"{name}: the first picture differs from the stored one in this environment")
        for i, label in enumerate(pages[name], 1):
            move(controls.nth(i - 1))
            deadline = time.monotonic() + 120
            while (now := picture.evaluate(bytes_of)) == seen:
                assert time.monotonic() < deadline, f"{name}: moving {label!r} did not change the picture"
                page.wait_for_timeout(200)
            seen = now
            cell.screenshot(path=shots / f"{name}_{i}_{label.replace(' ', '_')}.png")
        assert "Traceback" not in cell.inner_text()
    finally:
        page.close()
        stop_kernels()
