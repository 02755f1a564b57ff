"""Check, when a package is imported, that Python runs in this project's environment."""

from __future__ import annotations

import sys
from importlib.util import find_spec

CURE = ("activate its environment (from the root of the repository: source .venv/bin/activate) or create it (make "
        ".venv/installed)")  # fmt: skip


def check_environment(library: str = "fire", cure: str = CURE) -> None:
    """Exit with a one-line error if `python -m` runs without our libraries, for example outside .venv.

    library: the library that is checked as a proxy for all dependencies.
    """
    if sys.argv[:1] == ["-m"] and find_spec(library) is None:  # argv[0] is "-m" while Python looks for the module
        sys.exit(f"error: {sys.executable} lacks the libraries of cxr-simclr ({library}); {cure}")
