"""What is asked of a chapter's stored form. ``problems`` names each thing that is missing."""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator

from nbformat import NotebookNode

MAX_BYTES = 1_500_000
MIN_CAPTION, MIN_ALT = 20, 30
IMAGES = {"image/png", "image/jpeg", "image/svg+xml"}
ABSOLUTE = re.compile(r"(?<![\w.:/>])(/(?:home|root|tmp|work|Users|mnt|opt|usr)/\w|[A-Z]:\\\\?\w)")
EXERCISE = re.compile(r"^### Exercise (\d+\.\d+) · .+ +\*\((?:★|☆){3}, \d+ min\)\*$", re.MULTILINE)
SOLUTION = re.compile(r"^(?:#@title |<details><summary>)Solution (\d+\.\d+)", re.MULTILINE)
DIRECTIVE = re.compile(r"^ *(?::{3,}|`{3,}) *\{", re.MULTILINE)
ROLE = re.compile(r"\{(?!cite)[a-z:-]+\}`")
NOISE = re.compile(r"\bWarning:|it/s\]|\d+%\|", re.MULTILINE)

Problems = Iterator[str]


def problems(nb: NotebookNode, size: int = 0) -> list[str]:
    """All that is wrong with a notebook, one line each, led by the name of the check.

    Args:
        nb: the notebook, format 4.
        size: of its file, in bytes.
    """
    found = [f"size: {size} bytes, more than {MAX_BYTES}"] if size > MAX_BYTES else []
    return found + [f"{check.__name__}: {text}" for check in CHECKS for text in check(nb)]


def _code(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def _markdown(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "markdown"]


def _tagged(nb: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in _code(nb) if tag in cell.metadata.get("tags", [])]


def _first_line(cell: NotebookNode) -> str:
    return repr(cell.source.split("\n", 1)[0][:60])


def _python(cell: NotebookNode) -> ast.Module:
    """The cell without lines that only IPython understands."""
    lines = (re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in cell.source.splitlines())
    return ast.parse("\n".join(lines))


def _texts_of(out: NotebookNode) -> Iterator[str]:
    """What a stored output reads."""
    yield out.get("text", "")
    yield from (text for kind, text in out.get("data", {}).items() if kind.startswith("text/"))


def _texts(cell: NotebookNode) -> Iterator[str]:
    for out in cell.get("outputs", []):
        yield from _texts_of(out)


def order(nb: NotebookNode) -> Problems:
    """Cells were run once, from top to bottom, in a fresh kernel."""
    cells = [cell for cell in _code(nb) if cell.source.strip()]
    for expected, cell in enumerate(cells, start=1):
        if cell.execution_count != expected:
            was = (
                "was not run" if cell.execution_count is None else f"ran as {cell.execution_count}"
            )
            yield f"code cell {expected} {was}: {_first_line(cell)}"
            return


def outputs(nb: NotebookNode) -> Problems:
    """Outputs are stored, and a checked cell has something to be checked against."""
    if not any(cell.outputs for cell in _code(nb)):
        yield "no cell has a stored output"
    for cell in _tagged(nb, "nbval-check-output"):
        if not cell.outputs:
            yield f"checked, but without a stored output: {_first_line(cell)}"


def errors(nb: NotebookNode) -> Problems:
    """No stored error, but where one is meant."""
    for cell in _code(nb):
        failed = any(out.output_type == "error" for out in cell.outputs)
        if failed != ("raises-exception" in cell.metadata.get("tags", [])):
            what = "a stored error" if failed else "no error, though tagged"
            yield f"{what}: {_first_line(cell)}"


def noise(nb: NotebookNode) -> Problems:
    """No warnings and progress bars in what the reader sees."""
    for cell in _code(nb):
        for out in cell.outputs:
            if out.get("name") == "stderr":
                yield f"output on stderr: {_first_line(cell)}"
        if any(NOISE.search(text) for text in _texts(cell)):
            yield f"a warning or a progress bar: {_first_line(cell)}"


def head(nb: NotebookNode) -> Problems:
    """Title, the line that says what is settled, and what the chapter took."""
    text = nb.cells[0].source if nb.cells and nb.cells[0].cell_type == "markdown" else ""
    if not re.match(r"# \S.*\n\n\*[^*].+?\*\n", text, re.DOTALL):
        yield "the first cell is not a title and one line in italics"
    if not re.search(r"\*\*Takes\*\* \d+ s, \d+ MB", text):
        yield "the first cell lacks **Takes** … s, … MB"
    if sum(line.startswith("# ") for c in _markdown(nb) for line in c.source.splitlines()) > 1:
        yield "more than one title"


def set_up(nb: NotebookNode) -> Problems:
    """Colab's cell, one import of the library, and the parameters, in this order."""
    imports = [cell for cell in _code(nb) if re.search(r"^import seqrec_lib", cell.source, re.M)]
    named = {
        "colab": _tagged(nb, "colab"),
        "import": imports,
        "parameters": _tagged(nb, "parameters"),
    }
    for name, cells in named.items():
        if len(cells) != 1:
            yield f"{len(cells)} cells instead of one: {name}"
    if all(len(cells) == 1 for cells in named.values()):
        wanted = [cells[0] for cells in named.values()]
        if _code(nb)[:3] != wanted:
            yield "the first three code cells are not Colab's, the imports, the parameters"
        if not re.search(r"^import seqrec_lib as sr$", imports[0].source, re.MULTILINE):
            yield "the library is not imported as sr"
        for node in _python(named["parameters"][0]).body:
            if not isinstance(node, ast.Assign):
                yield f"the parameters hold more than assignments: line {node.lineno}"


def paths(nb: NotebookNode) -> Problems:
    """No path of the machine it was written on."""
    for cell in nb.cells:
        for text in (cell.source, *_texts(cell)):
            if match := ABSOLUTE.search(text):
                yield f"an absolute path, {match.group()}…: {_first_line(cell)}"
                break


def asserts(nb: NotebookNode) -> Problems:
    """The chapter checks what it says."""
    calls = (node for cell in _code(nb) for node in ast.walk(_python(cell)))
    if not any(
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("sr.claim", "claim")
        for node in calls
    ):
        yield "no claim is asserted"


def device(nb: NotebookNode) -> Problems:
    """In a chapter with tensors of its own, what trains a model hands it back on the CPU."""
    nodes = [node for cell in _code(nb) for node in ast.walk(_python(cell))]
    if not any(isinstance(n, ast.Import) and n.names[0].name == "torch" for n in nodes):
        return
    for function in (node for node in nodes if isinstance(node, ast.FunctionDef)):
        inside = [*ast.walk(function)]
        trained = {
            ast.unparse(node.args[0])
            for node in inside
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "sr.fit" and node.args
        }
        for node in inside:
            if isinstance(node, ast.Return) and node.value is not None:
                returned = getattr(node.value, "elts", [node.value])
                for model in trained & {ast.unparse(value) for value in returned}:
                    yield f"{function.name}() trains {model}; let it return {model}.cpu()"


def exercises(nb: NotebookNode) -> Problems:
    """Exercises are announced in one form, and each has a solution, folded away."""
    asked = [n for cell in _markdown(nb) for n in EXERCISE.findall(cell.source)]
    headings = sum(cell.source.count("### Exercise") for cell in _markdown(nb))
    if headings != len(asked) or not asked:
        yield f"{len(asked)} well-formed exercises under {headings} headings"
    solved = {n for cell in _tagged(nb, "solution") for n in SOLUTION.findall(cell.source)}
    solved |= {n for cell in _markdown(nb) for n in SOLUTION.findall(cell.source)}
    yield from (f"exercise {n} appears twice" for n, times in Counter(asked).items() if times > 1)
    yield from (f"exercise {n} has no solution" for n in sorted(set(asked) - solved))
    yield from (f"solution {n} has no exercise" for n in sorted(solved - set(asked)))
    for cell in _tagged(nb, "solution"):
        if not SOLUTION.match(cell.source):
            yield f"a solution does not open with #@title Solution N.N: {_first_line(cell)}"
        if "hide-cell" not in cell.metadata.tags or cell.metadata.get("cellView") != "form":
            yield f"a solution is not folded (make stamp): {_first_line(cell)}"


def figures(nb: NotebookNode) -> Problems:
    """Every image has a caption and an alternative text that says what is seen."""
    for cell in _code(nb):
        images = [out for out in cell.outputs if IMAGES & out.get("data", {}).keys()]
        if not images:
            continue
        meta = cell.metadata.get("mystnb", {})
        name = meta.get("figure", {}).get("name", "")
        caption = meta.get("figure", {}).get("caption", "")
        alt = meta.get("image", {}).get("alt", "")
        if len(images) > 1:
            yield f"{len(images)} images in one cell: {_first_line(cell)}"
        if len(caption) < MIN_CAPTION or not name.startswith("fig-"):
            yield f"no caption, or no name fig-…: {_first_line(cell)}"
        if len(alt) < MIN_ALT or alt == caption or " " not in alt:
            yield f"no meaningful alternative text: {_first_line(cell)}"
        others = [text for out in cell.outputs if out not in images for text in _texts_of(out)]
        if any("<Axes" in text or "<Figure" in text for text in others):
            yield f"the representation of an Axes is stored: {_first_line(cell)}"


def markup(nb: NotebookNode) -> Problems:
    """Nothing that shows as raw text in Jupyter or Colab; links to notebooks are relative."""
    for cell in _markdown(nb):
        if DIRECTIVE.search(cell.source) or ROLE.search(cell.source):
            yield f"a directive or role: {_first_line(cell)}"


def metadata(nb: NotebookNode) -> Problems:
    """A stable kernel name, and no traces of the editor."""
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    extra = set(nb.metadata) - {"kernelspec", "language_info", "seqrec"}
    if extra or set(nb.metadata.get("language_info", {})) - {"name"}:
        yield f"metadata of an editor (make stamp): {sorted(extra) or 'language_info'}"


CHECKS: list[Callable[[NotebookNode], Problems]] = [
    order,
    outputs,
    errors,
    noise,
    head,
    set_up,
    paths,
    asserts,
    device,
    exercises,
    figures,
    markup,
    metadata,
]
