"""What a chapter needs beside the library: claims that are checked, words that come from the run.

Everything here also works where the book's own tools are absent, as in Colab.
"""

import math
from typing import Any

MARK = "✓"  # opens each line that a claim prints; the page of claims is collected from these lines


def claim(statement: str, holds: bool) -> None:
    """Asserts that a sentence of the book holds, and prints it.

    Args:
        statement: one plain sentence. It is listed on the book's page of claims.
        holds: the truth of it, computed by the caller.

    Raises:
        AssertionError: the claim does not hold; the message is the statement.
        TypeError: ``holds`` is not one true or false value; a number or a string is a slip that
            would pass unnoticed.
    """
    # NumPy and torch booleans of one element say so by their dtype and shape
    one = math.prod(getattr(holds, "shape", ())) == 1
    if not isinstance(holds, bool) and not ("bool" in str(getattr(holds, "dtype", "")) and one):
        raise TypeError(f"claim {statement!r} needs True or False, got {holds!r}")
    if not bool(holds):
        raise AssertionError(f"does not hold: {statement}")
    print(f"{MARK} {statement}")  # one write: a kernel may store each apart


def say(markdown: str) -> None:
    """Shows a sentence in Markdown: prose whose numbers come from the run."""
    from IPython.display import Markdown, display

    display(Markdown(markdown))


def glue(name: str, value: Any, display: bool = False) -> None:
    """Stores a value of this page under a name, for other pages of the site (``{glue:text}``).

    Without myst-nb there is no site to store it for, and nothing happens.

    Args:
        name: unique in the book.
        value: a number, text, figure or table; NumPy and torch scalars become Python numbers,
            which is what the format in ``{glue:text}`name:.3f``` needs.
        display: whether to show the value here, too.
    """
    try:
        from myst_nb import glue as store
    except ImportError:
        return
    is_scalar = getattr(value, "ndim", None) == 0
    store(name, value.item() if is_scalar else value, display=display)
