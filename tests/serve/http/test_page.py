"""The status page in a browser: Chromium, where it and playwright are installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from fusedrnn.serve import CharactersModel
from tests.serve.http.conftest import Running, characters_engine

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, url: str) -> tuple[Any, list[str]]:
    """The page, and what goes wrong in it."""
    page, wrong = browser.new_page(viewport={"width": 900, "height": 900}), list[str]()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    return page, wrong


def until(page: Any, condition: str) -> None:
    """Wait for a JavaScript expression; playwright's own waiting evaluates strings in the page, which the page forbids."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition}: {page.inner_text('body')}")


def shot(page: Any, name: str) -> None:
    """A picture, if someone wants to look."""
    if folder := os.environ.get("FUSEDRNN_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")


def test_both_models_can_be_tried(browser: Any, both: Running) -> None:
    page, wrong = opened(browser, both.url)
    page.wait_for_selector("section.model[data-model=chars]")
    assert page.inner_text("#state") == "ready"
    assert page.inner_text("section.model[data-model=g2p] .use") == "0 of 4 slots in use, 0 waiting"
    page.select_option("#model", "g2p")
    assert not page.is_visible("#heat")
    page.fill("#text", "hello")
    page.click("#go")
    until(page, "document.getElementById('answer').textContent === 'HH EH1 L OW0'")
    page.select_option("#model", "chars")
    page.fill("#text", "inter")
    page.fill("#most", "120")
    page.click("#go")
    until(page, "document.getElementById('answer').textContent.length === 125")
    assert page.text_content("#answer").startswith("inter")
    shot(page, "tried")
    assert wrong == []
    page.fill("#text", "ä")
    page.click("#go")
    page.wait_for_selector("#answer.bad")
    assert "alphabet" in page.inner_text("#answer")
    page.close()


def test_occupancy_while_requests_run_and_a_reader_that_stops(browser: Any, characters: CharactersModel) -> None:
    with Running(characters_engine(characters, steps=1)) as running:
        page, wrong = opened(browser, running.url)
        page.wait_for_selector("section.model")
        page.fill("#text", "a")
        page.fill("#most", "4096")
        page.click("#go")
        until(page, "document.querySelector('.use').textContent.startsWith('1 of 4')")
        assert page.evaluate("document.querySelector('.bar > div').style.width") == "25%"
        shot(page, "running")
        page.click("#stop")
        running.until(lambda metrics: metrics.cancelled == 1)
        until(page, "document.querySelector('.use').textContent.startsWith('0 of 4')")
        assert wrong == []
        page.close()


def test_a_server_that_wants_a_token(browser: Any, characters: CharactersModel) -> None:
    with Running(characters_engine(characters), token="geheim") as running:
        page, _ = opened(browser, running.url)
        page.wait_for_selector("#token")
        page.fill("#token", "geheim")
        page.click("#unlock button")
        page.wait_for_selector("section.model")
        assert not page.is_visible("#lock")
        page.fill("#text", "in")
        page.click("#go")
        until(page, "document.getElementById('answer').textContent.length > 20")
        page.close()
