"""What the chapters use beside the library, and the tool that runs them."""

import os
import sys

import nbformat
import numpy as np
import pytest
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import book
from seqrec_lib.book import claim, glue, say


def test_a_claim_that_holds_is_printed(capsys):
    claim("It holds", np.float64(2.0) > 1)
    assert capsys.readouterr().out == "✓ It holds\n"


def test_a_claim_that_does_not_hold_stops():
    with pytest.raises(AssertionError, match="does not hold: It holds"):
        claim("It holds", np.bool_(False))


@pytest.mark.parametrize("slip", ["False", 1, None, 0.0, np.array(1.0)])
def test_a_claim_needs_a_truth_value(slip):
    with pytest.raises(TypeError, match="needs True or False"):
        claim("It holds", slip)


@pytest.mark.parametrize("values", [[True, False], [True, True], []])
def test_a_claim_about_an_array_is_ambiguous(values):
    with pytest.raises(TypeError, match="needs True or False"):
        claim("It holds", np.array(values, dtype=bool))


def test_glue_hands_on_python_numbers(monkeypatch):
    seen = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: seen.update({name: value}))
    glue("a", np.float32(0.5))
    glue("b", "text")
    assert seen == {"a": 0.5, "b": "text"} and type(seen["a"]) is float


def test_glue_does_without_myst_nb(monkeypatch):
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    glue("a", 1)


def test_say_shows_markdown(capsys):
    say("so")
    assert "Markdown" in capsys.readouterr().out


# --- tools/book.py -------------------------------------------------------------------------------


def notebook(*sources: str) -> nbformat.NotebookNode:
    cells = [new_markdown_cell("# A title\n\n**Takes** 0 s, 0 MB"), *map(new_code_cell, sources)]
    return new_notebook(cells=cells, metadata=book.NOTEBOOK_METADATA)


def chapter(folder, *sources: str):
    path = folder / "01_try.ipynb"
    nbformat.write(notebook(*sources), path)
    return path


def test_a_chapter_runs_in_its_folder_and_says_what_it_took(tmp_path):
    path = chapter(tmp_path, "import os\nos.getcwd()", "", "print('✓ It ran')")
    stored = {}
    book.run_all([path], 1, lambda path, nb: stored.update({path: nb}))
    nb = stored[path]
    assert str(tmp_path) in nb.cells[1].outputs[0].data["text/plain"]
    assert [cell.execution_count for cell in nb.cells[1:]] == [1, None, 2]
    assert book.claims(nb) == ["It ran"]
    assert nb.metadata["seqrec"]["megabytes"] > 10


def test_the_cache_finds_what_was_run(tmp_path):
    """Were anything added to a cell while it runs, Sphinx would run every chapter again."""
    path = chapter(tmp_path, "1 + 1")
    cache = get_cache(tmp_path / "cache")
    book.run_all([path], 1, lambda path, nb: cache.cache_notebook_bundle(CacheBundleIn(nb, path)))
    assert cache.match_cache_file(str(path))
    chapter(tmp_path, "1 + 2")
    with pytest.raises(KeyError):
        cache.match_cache_file(str(path))


def test_a_failing_chapter_is_reported_and_not_stored(tmp_path, capsys):
    path = chapter(tmp_path, "1 / 0")
    with pytest.raises(SystemExit, match="01_try"):
        book.run_all([path], 1, lambda path, nb: pytest.fail("stored"))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_normalising_removes_noise_and_is_stable():
    nb = notebook("pass")
    nb.metadata["language_info"] = {"name": "python", "version": "3.12.1"}
    nb.cells[1].metadata.update(tags=["colab"], execution={"busy": 1}, collapsed=False)
    once = book.normalise(nb, "https://example.org/book")
    assert once.metadata == book.NOTEBOOK_METADATA
    assert once.cells[1].metadata == {"tags": ["colab", "remove-cell"]}
    assert '%pip install -q "git+https://example.org/book"' in once.cells[1].source
    assert book.normalise(once, "https://example.org/book") == once


def test_claims_are_collected_from_what_was_printed():
    nb = notebook("a", "b")
    nb.cells[1].outputs = [new_output("stream", name="stdout", text="x\n✓ One\n✓ Two\n")]
    nb.cells[2].outputs = [new_output("stream", name="stderr", text="✓ Not this\n")]
    assert book.claims(nb) == ["One", "Two"]


def test_the_key_of_the_cache_changes_with_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").write_text("numpy==2\n")
    (tmp_path / "seqrec_lib").mkdir()
    (tmp_path / "seqrec_lib" / "__pycache__").mkdir()
    (tmp_path / "results").mkdir()
    keys = [book.library_key()]
    for name in ("seqrec_lib/a.py", "seqrec_lib/a.toml", "results/a.json", "requirements.txt"):
        (tmp_path / name).write_text("changed")
        keys.append(book.library_key())
    assert len(set(keys)) == 5
    (tmp_path / "seqrec_lib" / "__pycache__" / "a.pyc").write_text("made")
    assert book.library_key() == keys[-1]


def test_a_full_disk_leaves_the_chapter_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "04_chapter.ipynb"
    path.write_text("prose")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        book.replace(path, "half of it")
    assert path.read_text() == "prose" and [*tmp_path.iterdir()] == [path]


def test_each_benchmark_is_described_and_takes_the_shared_options():
    folder = book.ROOT / "benchmarks"
    described = (folder / "README.md").read_text()
    for script in folder.glob("[!_]*.py"):
        assert f"| `{script.name}` |" in described
        assert "arguments(__doc__" in script.read_text()


def test_an_unknown_chapter_is_an_error():
    with pytest.raises(SystemExit, match="no chapter starts with 99"):
        book.chapters(["99"])


def test_the_address_of_the_repository_stands_in_one_place():
    """Beside _config.yml, only the chapters' cell for Colab holds it, which `make stamp` writes."""
    address = book.repository_url().removeprefix("https://").encode()
    tops = (p for p in book.ROOT.iterdir() if p.name not in {".git", ".venv", "_build"})
    files = (p for top in tops for p in (top.rglob("*") if top.is_dir() else [top]) if p.is_file())
    holders = {p.relative_to(book.ROOT).as_posix() for p in files if address in p.read_bytes()}
    chapters = {p.relative_to(book.ROOT).as_posix() for p in book.chapters()}
    assert holders - chapters == {"_config.yml"}
    for path in book.chapters():
        assert path.read_bytes().count(address) == 1


def test_a_notebook_that_imports_the_library_is_told_nothing():
    """The site shows what a fresh environment says, not what stands stored in the chapters."""
    notebook = new_notebook(cells=[new_code_cell("import seqrec_lib")])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    assert notebook.cells[0].outputs == []


def test_what_there_is_to_do_is_counted_without_solutions():
    nb = new_notebook(cells=[
        new_markdown_cell("# 4 · Training it\n\none two"),
        new_markdown_cell("### Exercise 4.1 · Why?  *(★★☆, 15 min)*\n<details>not\nthis</details>"),
        new_markdown_cell("### Exercise 4.2 · How? *(★☆☆, 5 min)*"),
        new_code_cell("not_counted()", outputs=[
            new_output("display_data", data={"text/markdown": "word " * 300}),
            new_output("stream", text="nor this"),
        ]),
    ])  # fmt: skip
    assert book.exercises(nb) == [15, 5]
    assert book.words(nb) == 300
