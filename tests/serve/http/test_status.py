"""The page: what it holds, and that what its script asks for is there. A browser's view of it is in test_page.py."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import httpx

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Which elements a page has, and that all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named: dict[str, Any] = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in named:
            self.ids.append(named["id"])
        self.links += [named[name] for name in ("href", "src") if name in named]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page(answer.text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert set(re.findall(r'find\("(\w+)"\)', answer.text)) <= set(page.ids)
    assert page.links == ["data:,", "/openapi.json", "/metrics"]
    for link in page.links[1:]:
        assert client.get(link).status_code == 200


def test_the_numbers(client: httpx.Client) -> None:
    client.post("/v2/models/g2p/generate", json={"text_input": "one"})
    found = client.get("/status").json()
    assert found["ready"] is True
    g2p = found["models"]["g2p"]
    assert (g2p["slots"], g2p["running"], g2p["waiting"], g2p["generates"], g2p["draws"]) == (4, 0, 0, True, False)
    assert g2p["completed"] >= 1
    assert found["models"]["chars"]["draws"] is True
    used = set(re.findall(r"numbers\.(\w+)", client.get("/").text))
    assert used <= set(g2p)
