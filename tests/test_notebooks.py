"""The form of the chapters; and that each check of it can fail."""

import copy
from collections import Counter

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import book
import hygiene

CHAPTERS = book.chapters()
PNG = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 1x1>"})


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_in_order(path):
    assert hygiene.problems(read(path), path.stat().st_size) == []


def test_table_of_contents_and_folder_agree():
    toc = yaml.safe_load((book.ROOT / "_toc.yml").read_text())
    listed = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    folder = book.ROOT / "book"
    pages = {f"book/{p.stem}" for p in folder.iterdir() if p.suffix in (".md", ".ipynb")}
    assert len(listed) == len(set(listed))
    assert set(listed) == pages
    chapters = [page for page in listed if page.split("/")[1][:2].isdigit()]
    assert chapters == sorted(chapters)


def test_what_is_derived_is_up_to_date():
    """``make stamp`` would change nothing: Colab's cells, claims, timings, kernel names."""
    url = book.repository_url()
    for path in CHAPTERS:
        nb = read(path)
        assert book.normalise(copy.deepcopy(nb), url) == nb, f"make stamp would change {path.name}"
    for path, text in book.derived().items():
        assert path.read_text() == text, f"make stamp would change {path.name}"


def test_names_of_figures_are_unique():
    cells = (cell for path in CHAPTERS for cell in read(path).cells)
    figures = (cell.metadata.get("mystnb", {}).get("figure", {}) for cell in cells)
    names = Counter(figure["name"] for figure in figures if "name" in figure)
    assert [name for name, times in names.items() if times > 1] == []


# --- the checks themselves -----------------------------------------------------------------------


def sound() -> nbformat.NotebookNode:
    """A chapter in which nothing is wrong."""
    figure = {"name": "fig-one", "caption": "A caption that says what to look at."}
    image = {"alt": "A line chart that rises from the left to the right."}
    cells = [
        new_markdown_cell("# A title\n\n*What it settles.*\n\n**Takes** 0 s, 0 MB"),
        new_code_cell("pass", metadata={"tags": ["colab"]}),
        new_code_cell("import torch\n\nimport seqrec_lib as sr"),
        new_code_cell("data = 'markov'\nepochs = 3", metadata={"tags": ["parameters"]}),
        new_code_cell(
            "1 + 1",
            metadata={"tags": ["nbval-check-output"]},
            outputs=[new_output("execute_result", {"text/plain": "2"}, execution_count=4)],
        ),
        new_code_cell(
            "sr.claim('It holds', True)",
            outputs=[new_output("stream", name="stdout", text="✓ It holds\n")],
        ),
        new_code_cell("plot()", metadata={"mystnb": {"figure": figure, "image": image}}),
        new_markdown_cell("### Exercise 1.1 · Add *(★☆☆, 5 min)*\n\nAdd."),
        new_code_cell("#@title Solution 1.1\nassert 1 + 1 == 2", metadata={"tags": ["solution"]}),
        new_markdown_cell("### Exercise 1.2 · Argue *(★★☆, 9 min)*\n\nWhy?"),
        new_markdown_cell("<details><summary>Solution 1.2</summary>\n\nSo.\n\n</details>"),
    ]
    nb = new_notebook(cells=cells, metadata=book.NOTEBOOK_METADATA)
    nb.cells[6].outputs = [copy.deepcopy(PNG)]
    for count, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
    return book.normalise(nb, "https://example.org/book")


def error() -> nbformat.NotebookNode:
    return new_output("error", ename="ValueError", evalue="no", traceback=[])


def stderr(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stderr", text=text)


def stdout(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stdout", text=text)


# what is spoilt, by which check it is to be found
SPOILT = {
    "a cell not run": ("order", lambda c: c[4].update(execution_count=None)),
    "run twice": ("order", lambda c: c[4].update(execution_count=9)),
    "out of order": ("order", lambda c: c.insert(5, c.pop(4)) or c.insert(4, c.pop(6))),
    "checked without output": ("outputs", lambda c: c[4].update(outputs=[])),
    "no outputs at all": ("outputs", lambda c: [x.update(outputs=[]) for x in c if "outputs" in x]),
    "a stored error": ("errors", lambda c: c[5].outputs.append(error())),
    "a missing error": ("errors", lambda c: c[5].metadata.update(tags=["raises-exception"])),
    "a warning": ("noise", lambda c: c[5].outputs.append(stderr("UserWarning: old"))),
    "a progress bar": ("noise", lambda c: c[5].outputs.append(stdout(" 40%|####  | 2.1it/s]"))),
    "no title": ("head", lambda c: c.pop(0)),
    "no italic line": ("head", lambda c: c[0].update(source="# A\n\nB\n\n**Takes** 0 s, 0 MB")),
    "no cost": ("head", lambda c: c[0].update(source="# A\n\n*B.*\n\nC")),
    "a second title": ("head", lambda c: c.append(new_markdown_cell("# Another"))),
    "no parameters": ("set_up", lambda c: c[3].update(metadata={})),
    "parameters that compute": ("set_up", lambda c: c[3].update(source="print(1)")),
    "imported twice": ("set_up", lambda c: c[4].update(source="import seqrec_lib")),
    "imported late": ("set_up", lambda c: c.insert(4, c.pop(2))),
    "imported otherwise": ("set_up", lambda c: c[2].update(source="import seqrec_lib as lib")),
    "no cell for Colab": ("set_up", lambda c: c.pop(1)),
    "a path in the code": ("paths", lambda c: c[4].update(source="open('/home/me/x.csv')")),
    "a path in an output": ("paths", lambda c: c[5].outputs.append(stdout("in /tmp/x.py\n"))),
    "nothing asserted": ("asserts", lambda c: c[5].update(source="print('✓ It holds')")),
    "a claim in a comment": ("asserts", lambda c: c[5].update(source="# sr.claim('so', True)")),
    "a model left on a GPU": (
        "device",
        lambda c: c[4].update(source="def f(m):\n    sr.fit(m, 1)\n    return m, 2"),
    ),
    "no solution": ("exercises", lambda c: c.pop(8)),
    "a solution to nothing": ("exercises", lambda c: c.pop(7)),
    "an exercise without minutes": ("exercises", lambda c: c[7].update(source="### Exercise 1.1")),
    "the same exercise twice": ("exercises", lambda c: c.append(c[7])),
    "an open solution": ("exercises", lambda c: c[8].metadata.update(tags=["solution"])),
    "no exercises": ("exercises", lambda c: [c.pop() for _ in range(4)]),
    "no caption": ("figures", lambda c: c[6].metadata.mystnb.figure.pop("caption")),
    "no name": ("figures", lambda c: c[6].metadata.mystnb.figure.pop("name")),
    "no alternative text": ("figures", lambda c: c[6].metadata.mystnb.pop("image")),
    "a path for a text": ("figures", lambda c: c[6].metadata.mystnb.image.update(alt="a/" * 20)),
    "two images": ("figures", lambda c: c[6].outputs.append(copy.deepcopy(PNG))),
    "an axes object": (
        "figures",
        lambda c: c[6].outputs.append(new_output("execute_result", {"text/plain": "<Axes: >"})),
    ),
    "a directive": ("markup", lambda c: c.append(new_markdown_cell(":::{note}\nSo.\n:::"))),
    "a role": ("markup", lambda c: c.append(new_markdown_cell("see {ref}`here`"))),
}


def test_a_sound_chapter_passes():
    assert hygiene.problems(sound()) == []


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_spoilt_is_found(what):
    check, spoil = SPOILT[what]
    nb = sound()
    spoil(nb.cells)
    assert any(problem.startswith(f"{check}: ") for problem in hygiene.problems(nb))


def test_size_and_metadata_are_checked():
    assert hygiene.problems(sound(), size=hygiene.MAX_BYTES + 1)
    for key, value in {"kernelspec": {"name": "mine"}, "widgets": {}}.items():
        nb = sound()
        nb.metadata[key] = value
        assert [p.split(":")[0] for p in hygiene.problems(nb)] == ["metadata"]


def test_every_check_is_seen_to_fail():
    checks = {check.__name__ for check in hygiene.CHECKS} - {"metadata"}
    assert checks == {check for check, _ in SPOILT.values()}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_s_title_has_the_number_of_its_file(path):
    """The text says "Chapter 10"; the reader of the site finds it by the title alone."""
    assert book.title(read(path)).startswith(f"{int(path.name[:2])} · ")
