"""What the README promises."""

import re

import numpy as np

import book


def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    """As printed, on a log of two columns too many, with one epoch instead of fifty."""
    rng = np.random.default_rng(0)
    rows = [
        f"u{user},item {(start + step) % 12},{step},x"
        for user, start in enumerate(rng.integers(12, size=60))
        for step in range(8)
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["user_id,item_id,ts,else", *rows]))
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.+?)```", (book.ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert "epochs=50" in code
    exec(code.replace("epochs=50", "epochs=1"), {})
    ndcg, recommended = capsys.readouterr().out.strip().splitlines()[-2:]
    assert 0 <= float(ndcg) <= 1
    assert recommended.count("item ") == 10


def test_files_and_commands_it_names_exist():
    text = (book.ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!http|\.\./)([^)#]+)\)", text):
        assert (book.ROOT / target).is_file(), target
    makefile = (book.ROOT / "Makefile").read_text()
    for command in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
