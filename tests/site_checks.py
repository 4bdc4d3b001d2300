"""What is asked of a page of the built site. ``problems`` names each thing that is wrong."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

MIN_ALT = 30  # characters; ten for the theme's own icons, outside the text
SUBSTITUTION = re.compile(r"\{\{ \w+ \}\}")
RAW = re.compile(r"\{[a-z][a-z:-]*\}`|^:{3,}|`{3}\{|\{\{|\}\}|\[\?\]", re.MULTILINE)
IS_PATH = re.compile(r"^\S*[/\\]\S*$|\.(png|svg|jpe?g|gif)$")


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def problems(path: Path, may_raise: bool = False) -> list[str]:
    """All that is wrong with a page, one line each, led by the name of the check.

    Args:
        path: of the HTML file.
        may_raise: whether the page shows an error on purpose.
    """
    checks = [links, images, raw_text, messages, headings]
    found = [f"{check.__name__}: {text}" for check in checks for text in check(path)]
    return found if may_raise else found + [f"tracebacks: {text}" for text in tracebacks(path)]


def links(path: Path) -> Iterator[str]:
    """Links and sources inside the site lead somewhere, down to the anchor."""
    for node in soup(path).select("[href], [src]"):
        if node.find_parent("head") is not None and "href" in node.attrs:
            continue  # <link> elements: canonical addresses and the like
        address = urlsplit(node.get("href") or node.get("src") or "")
        if address.scheme or address.netloc or not (address.path or address.fragment):
            continue
        target = (path.parent / unquote(address.path)).resolve() if address.path else path
        if target.is_dir():
            target = target / "index.html"
        if not target.is_file():
            yield f"no such file: {address.geturl()}"
        elif address.fragment and target.suffix == ".html" and not _has(target, address.fragment):
            yield f"no such anchor: {address.geturl()}"


@cache
def _anchors(path: Path) -> frozenset[str]:
    nodes = soup(path).select("[id], [name]")
    return frozenset(node.get(key) for node in nodes for key in ("id", "name") if node.get(key))


def _has(path: Path, fragment: str) -> bool:
    return unquote(fragment) in _anchors(path)


def images(path: Path) -> Iterator[str]:
    """Each image says in words what it shows."""
    for image in soup(path).find_all("img"):
        alt = (image.get("alt") or "").strip()
        least = MIN_ALT if image.find_parent("article") else 10
        if len(alt) < least or IS_PATH.search(alt):
            yield f"{image.get('src')} has the alternative text {alt!r}"


def raw_text(path: Path) -> Iterator[str]:
    """No markup that was not understood; code may hold anything but a substitution."""
    for article in soup(path).select("article"):
        words = BeautifulSoup(str(article), "html.parser")
        for node in words.select("pre, code, script, style, .math"):
            node.decompose()
        for match in RAW.finditer(words.get_text()):
            yield f"raw markup: {words.get_text()[match.start() :][:60]!r}"
        for code in BeautifulSoup(str(article), "html.parser").select("pre"):
            if left := SUBSTITUTION.search(code.get_text()):
                yield f"raw markup: {left.group()!r} in code, where nothing is put in its place"


def messages(path: Path) -> Iterator[str]:
    for node in soup(path).select(".system-message, .problematic"):
        yield f"a message of the builder: {node.get_text()[:80]!r}"


def tracebacks(path: Path) -> Iterator[str]:
    if "Traceback (most recent call last)" in soup(path).get_text():
        yield "the page shows a traceback"


def headings(path: Path) -> Iterator[str]:
    """One title, and no level left out, which is how a screen reader finds its way."""
    levels = [int(node.name[1]) for node in soup(path).select("article :is(h1, h2, h3, h4, h5)")]
    if levels and (levels[0] != 1 or levels.count(1) != 1):
        yield f"{levels.count(1)} titles"
    yield from (f"h{a} then h{b}" for a, b in zip(levels, levels[1:], strict=False) if b > a + 1)
