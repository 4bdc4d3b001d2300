"""The site, built from the stored outputs; and that each check of it can fail."""

import subprocess
import sys

import nbformat
import pytest
import yaml

import book
import site_checks

SITE = book.BUILD / "stored" / "_build" / "html"


@pytest.fixture(scope="module")
def site():
    build = [sys.executable, "tools/book.py", "build", "--stored"]
    done = subprocess.run(build, cwd=book.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return SITE


def test_every_page_of_the_contents_exists(site):
    toc = yaml.safe_load((book.ROOT / "_toc.yml").read_text())
    pages = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    missing = [page for page in pages if not (site / f"{page}.html").is_file()]
    assert missing == []


def test_pages_are_sound(site):
    raising = {
        path.with_suffix(".html").name
        for path in book.chapters()
        for cell in nbformat.read(path, as_version=4).cells
        if "raises-exception" in cell.metadata.get("tags", [])
    }
    pages = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    wrong = {
        path.relative_to(site).as_posix(): found
        for path in pages
        if (found := site_checks.problems(path, may_raise=path.name in raising))
    }
    assert wrong == {}


def test_the_front_page_is_reached_from_the_root(site):
    assert "book/index.html" in (site / "index.html").read_text()


def test_chapters_can_be_launched_in_colab(site):
    repository = book.repository_url().removeprefix("https://github.com/")
    for path in book.chapters():
        page = (site / "book" / path.with_suffix(".html").name).read_text()
        assert f"github/{repository}/blob/main/book/{path.name}" in page


def test_the_style_sheet_is_used(site):
    assert "custom.css" in (site / "book" / "index.html").read_text()


# --- the checks themselves -----------------------------------------------------------------------

SOUND = """<html><body><article><h1>A</h1><h2 id="b">B</h2>
<a href="#b">b</a> <a href="https://example.org/x">out</a> <a href="page.html#b">here</a>
<img src="page.html" alt="A line chart that rises from left to right"><pre>{ref}`raw` :::</pre>
</article></body></html>"""

SPOILT = {
    "a broken link": ("links", 'href="#b"', 'href="none.html"'),
    "a broken anchor": ("links", 'href="#b"', 'href="#c"'),
    "a broken anchor elsewhere": ("links", "page.html#b", "page.html#c"),
    "a missing image": ("links", 'src="page.html"', 'src="none.png"'),
    "no alternative text": ("images", 'alt="A line chart that rises from left to right"', ""),
    "a short alternative text": ("images", "A line chart that rises from left to right", "chart"),
    "a path for a text": (
        "images",
        "A line chart that rises from left to right",
        "../_images/8a01aadfc9.png",
    ),
    "a role": ("raw_text", "</pre>", "</pre>{ref}`raw`"),
    "a fence": ("raw_text", "</pre>", "</pre>\n:::"),
    "an unknown citation": ("raw_text", "</pre>", "</pre>Kang [?]"),
    "a substitution": ("raw_text", "</pre>", "</pre>{{ repository }}"),
    "a substitution in code": ("raw_text", "</pre>", "{{ repository }}</pre>"),
    "a message": ("messages", "</pre>", '</pre><p class="system-message">unknown</p>'),
    "a traceback": ("tracebacks", "</pre>", "</pre>Traceback (most recent call last)"),
    "two titles": ("headings", "h2", "h1"),
    "a skipped level": ("headings", "h2", "h3"),
}


def test_a_sound_page_passes(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(SOUND)
    assert site_checks.problems(page) == []


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_spoilt_is_found(what, tmp_path):
    check, old, new = SPOILT[what]
    assert old in SOUND
    page = tmp_path / "page.html"
    page.write_text(SOUND.replace(old, new))
    assert {problem.split(":")[0] for problem in site_checks.problems(page)} == {check}
