"""What the README and the page on reading promise."""

import re

import numpy as np
import pytest

import book


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A log, mine.csv, with a column too many, in the current folder."""
    rng = np.random.default_rng(0)
    rows = [
        f"u{user},item {(start + step) % 12},{step},x"
        for user, start in enumerate(rng.integers(12, size=60))
        for step in range(8)
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["user_id,item_id,ts,else", *rows]))
    monkeypatch.chdir(tmp_path)


def run(page, with_word, shorter):
    """Run the page's Python that holds a word, as printed but for what makes it short."""
    blocks = re.findall(r"```python\n(.+?)```", (book.ROOT / page).read_text(), re.DOTALL)
    (code,) = (block for block in blocks if with_word in block)
    for long, short in shorter.items():
        assert long in code
        code = code.replace(long, short)
    exec(code, {})


def test_the_ten_lines_run(mine, capsys):
    run("README.md", "recommend(", {"epochs=50": "epochs=1"})
    ndcg, recommended = capsys.readouterr().out.strip().splitlines()[-2:]
    assert 0 <= float(ndcg) <= 1
    assert recommended.count("item ") == 10


def test_a_question_of_ones_own_is_answered_as_the_page_says(mine, capsys):
    shorter = {"range(5)": "range(2)", "fit(model, split, ": "fit(model, split, epochs=1, "}
    run("book/how_to_read.md", "equivalence(", shorter)
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.match(r"(equivalent|different|undecided): difference", said)


def test_files_and_commands_it_names_exist():
    text = (book.ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!http|\.\./)([^)#]+)\)", text):
        assert (book.ROOT / target).is_file(), target
    makefile = (book.ROOT / "Makefile").read_text()
    for command in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
