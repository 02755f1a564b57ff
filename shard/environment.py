"""Is the Python that runs us the one that this project was installed for? Every package asks as it is imported."""

from __future__ import annotations

import sys
from importlib.util import find_spec

CURE = ("enter its environment (from the root of the repository: source .venv/bin/activate) or make it (make "
        ".venv/installed)")  # fmt: skip


def check_environment(library: str = "fire", cure: str = CURE) -> None:
    """End in one line, where `python -m` is the word to a Python that lacks our libraries, as outside of .venv.

    library: one that stands for all of them.
    """
    if sys.argv[:1] == ["-m"] and find_spec(library) is None:  # as long as the module is looked for; later its path
        sys.exit(f"error: {sys.executable} lacks the libraries of cxr-simclr ({library}); {cure}")
