"""Where things lie now that a run has been moved, or is asked about from another folder."""

from __future__ import annotations

import os
from pathlib import Path


def find_moved(path: str, base: str, base_now: Path, wanted: str = "") -> Path | None:
    """Where `path` lies now, as it was written down when what lies in `base_now` lay in `base`; None if nowhere.

    That is where it was, if it is there still; else where it lies as seen from the base, which may have been moved with
    it. Relative paths are of a folder that is not known any more. wanted: a file that has to be in it.
    """
    places = [Path(path)] if Path(path).is_absolute() else []
    if Path(path).is_absolute() == Path(base).is_absolute():
        places.append(Path(os.path.normpath(base_now.absolute() / os.path.relpath(path, base))))
    if not Path(path).is_absolute():
        places.append(Path(path).absolute())
    return next((place for place in places if (place / wanted).exists()), None)
