"""Runs the chapters and builds the site; ``make book`` and ``make execute`` come here.

python tools/book.py execute [04 ...]   re-run chapters, store their outputs in place
python tools/book.py build              run what is stale, build the site into _build/html
python tools/book.py build --stored     build from the stored outputs into _build/stored
python tools/book.py stamp              rewrite what is derived from _config.yml and the outputs
"""

import argparse
import asyncio
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
CELL_TIMEOUT = 600  # seconds; a chapter is to take less than sixty

# What every notebook is stored with, whichever editor it came from.
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# A solution is folded away on the site, in JupyterLab and in Colab.
SOLUTION_METADATA = {
    "mystnb": {"code_prompt_show": "Show solution", "code_prompt_hide": "Hide solution"},
    "jupyter": {"source_hidden": True},
    "cellView": "form",
}
NOISE = {"execution", "collapsed", "scrolled", "trusted", "ExecuteTime", "colab", "id", "outputId"}
TAKES = re.compile(r"\*\*Takes\*\* [\d.,]+ s, [\d.,]+ MB")
CLAIM = re.compile(r"^✓ (.+)$", re.MULTILINE)
EXERCISE = re.compile(r"^### Exercise .*\(★.*, (\d+) min\)", re.MULTILINE)
SOLUTION = re.compile(r"<details>.*?</details>", re.DOTALL)


# --- the chapters ----------------------------------------------------------------------------


def chapters(wanted: Iterable[str] = (), root: Path = ROOT) -> list[Path]:
    """The chapters in order: all of them, or those whose names start with one of ``wanted``."""
    found = sorted((root / "book").glob("[0-9][0-9]_*.ipynb"))
    prefixes = tuple(wanted)
    chosen = [path for path in found if path.name.startswith(prefixes)] if prefixes else found
    if prefixes and not chosen:
        raise SystemExit(f"no chapter starts with {' or '.join(prefixes)}: {_names(found)}")
    return chosen


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.stem for path in paths) or "there is none yet"


def repository_url(root: Path = ROOT) -> str:
    """The one place where the repository's address stands."""
    return yaml.safe_load((root / "_config.yml").read_text())["repository"]["url"]


def colab_source(url: str) -> str:
    """The cell that fetches the library where it is missing, and leaves the torch there alone."""
    return (
        "import importlib.util\n\n"
        'if importlib.util.find_spec("seqrec_lib") is None:  # in Colab, say\n'
        f'    %pip install -q "git+{url}"'
    )


def normalise(nb: NotebookNode, url: str) -> NotebookNode:
    """Brings a notebook into the form it is stored in: no noise, folded solutions, Colab's cell."""
    kept = {"seqrec": nb.metadata["seqrec"]} if "seqrec" in nb.metadata else {}
    nb.metadata = nbformat.from_dict({**NOTEBOOK_METADATA, **kept})
    for cell in nb.cells:
        for key in NOISE & cell.metadata.keys():
            del cell.metadata[key]
        tags = cell.metadata.get("tags", [])
        if "colab" in tags:
            cell.source = colab_source(url)
            cell.metadata.tags = sorted({*tags, "remove-cell"})
        if "solution" in tags and cell.cell_type == "code":
            cell.metadata.update(nbformat.from_dict(SOLUTION_METADATA))
            cell.metadata.tags = sorted({*tags, "hide-cell"})
    return nb


async def run(path: Path) -> NotebookNode:
    """Executes a chapter in its folder; ``metadata.seqrec`` tells what it took."""
    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(
        nb,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,  # times in the cells would change what the cache compares
        coalesce_streams=True,  # else how a cell's lines fall into outputs is chance
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    start = time.perf_counter()
    async with client.async_setup_kernel(env={**os.environ, "OMP_NUM_THREADS": "1"}):
        count = 0
        for index, cell in enumerate(nb.cells):
            if cell.cell_type == "code" and cell.source.strip():
                count += 1
                await client.async_execute_cell(cell, index, execution_count=count)
        seconds = time.perf_counter() - start
        megabytes = await _peak_megabytes(client)
    nb.metadata["seqrec"] = {
        "seconds": round(seconds),
        "megabytes": round(megabytes, -1),
        "python": platform.python_version(),
        "torch": version("torch").split("+")[0],
        "numpy": version("numpy"),
    }
    return nb


async def _peak_megabytes(client: NotebookClient) -> int:
    """Peak resident memory of the kernel."""
    ask = {"peak": "__import__('resource').getrusage(0).ru_maxrss"}
    reply = await client.kc.execute_interactive("", user_expressions=ask, store_history=False)
    peak = int(reply["content"]["user_expressions"]["peak"]["data"]["text/plain"])
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def run_all(paths: list[Path], jobs: int, store: Callable[[Path, NotebookNode], None]) -> None:
    """Runs chapters, ``jobs`` at a time, stores each that ends well, then reports what failed."""
    failed = {}

    async def one(path: Path, turn: asyncio.Semaphore) -> None:
        async with turn:
            try:
                nb = await run(path)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                failed[path] = error
                return
        store(path, nb)
        took = nb.metadata["seqrec"]
        print(f"{path.stem}: {took['seconds']} s, {took['megabytes']} MB", flush=True)

    async def everything() -> None:
        turn = asyncio.Semaphore(jobs)
        await asyncio.gather(*(one(path, turn) for path in paths))

    asyncio.run(everything())
    for path, error in failed.items():
        print(f"\n{path.name} failed:\n{error}", file=sys.stderr)
    if failed:
        raise SystemExit(f"failed: {_names(failed)}")


def execute(wanted: list[str], jobs: int) -> None:
    """Re-runs chapters and stores their outputs in place."""

    def store(path: Path, nb: NotebookNode) -> None:
        took = nb.metadata["seqrec"]
        takes = f"**Takes** {took['seconds']} s, {took['megabytes']} MB"
        nb.cells[0].source = TAKES.sub(takes, nb.cells[0].source)
        replace(path, nbformat.writes(normalise(nb, url)) + "\n")

    url = repository_url()
    stamp()  # first, so that what runs is what is stored
    run_all(chapters(wanted), jobs, store)
    stamp()


# --- the pages derived from the chapters -------------------------------------------------------


def claims(nb: NotebookNode) -> list[str]:
    """The claims a chapter printed, in order."""
    outputs = (out for cell in nb.cells for out in cell.get("outputs", []))
    text = "\n".join(out["text"] for out in outputs if out.get("name") == "stdout")
    return CLAIM.findall(text)


def exercises(nb: NotebookNode) -> list[int]:
    """The minutes that each exercise of a chapter takes."""
    return [int(found) for cell in nb.cells for found in EXERCISE.findall(cell.source)]


def words(nb: NotebookNode) -> int:
    """How many a reader meets outside code and solutions, to the nearest hundred."""
    texts = [SOLUTION.sub("", cell.source) for cell in nb.cells if cell.cell_type == "markdown"]
    outputs = (out for cell in nb.cells for out in cell.get("outputs", []))
    texts += [out["data"].get("text/markdown", "") for out in outputs if "data" in out]
    return round(sum(len(text.split()) for text in texts), -2)


def title(nb: NotebookNode) -> str:
    return nb.cells[0].source.split("\n", 1)[0].removeprefix("# ").strip()


def derived(root: Path = ROOT) -> dict[Path, str]:
    """The pages that are made from the chapters' stored outputs, as they should read now."""
    books = {path.name: nbformat.read(path, as_version=4) for path in chapters(root=root)}
    listed = []
    for name, nb in books.items():
        lines = "\n".join(f"- {claim}" for claim in claims(nb))
        listed.append(f"## [{title(nb)}]({name})\n\n{lines}\n")
    rows = ["| chapter | seconds | peak MB | Python | torch | NumPy |", "|---|--:|--:|---|---|---|"]
    for name, nb in books.items():
        took = nb.metadata.get("seqrec", {})
        cells = (took.get(key, "?") for key in ("seconds", "megabytes", "python", "torch", "numpy"))
        rows.append(f"| [{title(nb)}]({name}) | " + " | ".join(map(str, cells)) + " |")
    work = ["| chapter | words | exercises | minutes they take |", "|---|--:|--:|--:|"]
    for name, nb in books.items():
        minutes = exercises(nb)
        work.append(f"| [{title(nb)}]({name}) | {words(nb):,} | {len(minutes)} | {sum(minutes)} |")
    pages = {
        root / "book" / "claims.md": "\n".join(listed),
        root / "book" / "reproducibility.md": "\n".join(rows),
        root / "book" / "teaching.md": "\n".join(work),
    }
    return {path: _between_markers(path.read_text(), text) for path, text in pages.items()}


def _between_markers(page: str, text: str) -> str:
    start, end = "<!-- made from the chapters: make execute -->", "<!-- end -->"
    before, rest = page.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n\n{text.strip()}\n\n{end}{after}"


def stamp() -> None:
    """Rewrites what is derived: Colab's cell in each chapter, and the tables made from them all."""
    url = repository_url()
    for path in chapters():
        before = path.read_text()
        nb = normalise(nbformat.reads(before, as_version=4), url)
        if nbformat.writes(nb).rstrip("\n") != before.rstrip("\n"):
            replace(path, nbformat.writes(nb) + "\n")
    for path, text in derived().items():
        replace(path, text)


def replace(path: Path, text: str) -> None:
    """Puts the text in the file's place at once: nobody's prose is lost to a full disk."""
    from seqrec_lib.files import atomic_path  # here, for it brings torch along

    with atomic_path(path) as temporary:
        temporary.write_text(text)


# --- the site ------------------------------------------------------------------------------


def library_key() -> str:
    """Changes with anything a chapter's outputs depend on, beside its own cells."""
    digest = hashlib.sha256(platform.python_version().encode())
    files = [
        ROOT / "requirements.txt",
        *(p for p in ROOT.glob("seqrec_lib/**/*") if "__pycache__" not in p.parts),
        *ROOT.glob("results/**/*"),
    ]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fill_cache(folder: Path, jobs: int) -> None:
    """Runs the chapters the execution cache does not hold, several at a time.

    Sphinx would run them one after the other. The cache itself compares a chapter's code cells
    only, which is why its folder is named after the library they import.
    """
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.iterdir():
        if old != folder:
            shutil.rmtree(old)
    cache = get_cache(folder)

    def is_stale(path: Path) -> bool:
        try:
            cache.match_cache_file(str(path))
        except KeyError:
            return True
        return False

    def store(path: Path, nb: NotebookNode) -> None:
        bundle = CacheBundleIn(nb, str(path))
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)

    run_all([path for path in chapters() if is_stale(path)], jobs, store)


def build(stored: bool, jobs: int) -> None:
    """Builds the site: from the stored outputs, or from a run of everything that is stale."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text())
    output = BUILD / "stored" if stored else ROOT
    if not stored:
        cache = BUILD / "cache" / library_key()
        fill_cache(cache, jobs)
        settings["execute"] |= {"execute_notebooks": "cache", "cache": str(cache)}
    BUILD.mkdir(exist_ok=True)
    config = BUILD / ("config-stored.yml" if stored else "config.yml")
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["--config", str(config), "--path-output", str(output), "-W", "--keep-going"]
    pages, site = output / "_build" / ".doctrees", output / "_build" / "html"
    whole = output / "_build" / "whole"
    if not whole.exists():  # Sphinx does not repeat the warnings of pages it has read before
        shutil.rmtree(pages, ignore_errors=True)
    whole.unlink(missing_ok=True)
    result = subprocess.run([*jupyter_book, "build", str(ROOT), *options], cwd=ROOT)
    if result.returncode or not (site / "index.html").is_file():
        raise SystemExit(result.returncode or "the builder ended well, but built no site")
    # Sphinx copies these only where some page is new.
    shutil.copytree(ROOT / "book" / "_static", site / "_static", dirs_exist_ok=True)
    whole.touch()
    print(f"the site: {site / 'index.html'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("execute", "build"):
        command = commands.add_parser(name)
        command.add_argument("--jobs", type=int, default=2, help="chapters run at a time")
    commands.choices["execute"].add_argument("chapters", nargs="*", help="such as 04")
    commands.choices["build"].add_argument("--stored", action="store_true", help="run nothing")
    commands.add_parser("stamp")
    args = parser.parse_args()
    if args.command == "execute":
        execute(args.chapters, args.jobs)
    elif args.command == "build":
        build(args.stored, args.jobs)
    else:
        stamp()


if __name__ == "__main__":
    main()
