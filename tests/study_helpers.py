"""Shared by the tests of the study: what a command that is shown to a reader would do."""

import shlex

from seqrec_lib.study.grid import Run, load_grid, select


def runs_of(commands: str, grid) -> list[Run]:
    """The runs of ``grid`` that one command would do, or several joined by "&&", in that order."""
    found = []
    for command in commands.split(" && "):
        chosen = [word.split("=") for word in shlex.split(command) if "=" in word]
        found += select(load_grid(grid), {name: values.split(",") for name, values in chosen})
    return found
