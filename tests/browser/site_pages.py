"""The built site in a real browser that reaches no other server. `make test-browser` runs it."""

import functools
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

root = Path(__file__).resolve().parent.parent.parent
site = root / "_docs" / "site"


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Silent, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    "A page whose requests to any other server fail, and are noted."
    page = browser.new_page(viewport=dict(width=1400, height=1000))
    page.elsewhere = []

    def only_here(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        page.elsewhere.append(route.request.url)
        return route.abort()

    page.route("**/*", only_here)
    yield page
    asked = page.elsewhere
    page.close()
    assert asked == [], "the site asks other servers"


def test_equations_are_drawn(page, address):
    page.goto(f"{address}/nbs/12_stage1.adaptor.html")
    equations = page.locator("math[display='block']")
    assert equations.count() >= 4
    wide, high = (equations.first.bounding_box()[side] for side in ("width", "height"))
    assert wide > 60 and high > 15
    assert "$" not in page.locator(".jp-RenderedMarkdown").first.inner_text()


def test_a_picture_stands_where_the_sliders_are(page, address):
    page.goto(f"{address}/nbs/22_stage2.alignment.html")
    cell = page.locator(".jp-CodeCell", has_text="Explorer(").last
    picture = cell.locator("img").first
    expect(picture).to_be_visible()
    assert picture.evaluate("img => img.naturalWidth") > 200


def test_readme_leads_to_the_api(page, address):
    page.goto(f"{address}/index.html")
    page.get_by_role("link", name="stage1.ddpm.q_sample").click()
    expect(page).to_have_url(f"{address}/api/stage1.ddpm.html#mfmda.stage1.ddpm.q_sample")
    expect(page.locator("[id='mfmda.stage1.ddpm.q_sample']")).to_be_visible()


def test_a_word_is_found(page, address):
    page.goto(f"{address}/index.html")
    page.locator("input.md-search__input").fill("inversion")
    found = page.locator(".md-search-result__link").first
    expect(found).to_be_visible(timeout=20_000)
    found.click()
    expect(page.locator("body")).to_contain_text("nversion")
