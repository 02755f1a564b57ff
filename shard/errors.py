"""Exceptions for errors that the user can fix, and for unusable source files. Any other exception is a bug.

shard.cli.run prints them as one line and sets the exit status.
"""

LONGEST = 2000  # characters, enough for a command with three long paths
# What parsing truncated files or JSON of unknown origin may raise.
PARSE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


class InputError(Exception):
    """An unusable flag, file or table, described on one line by the thing, its value and the cure."""

    def __init__(self, text: str) -> None:
        # Quoted content may contain line breaks or be a megabyte long. Keep double blanks, which a path may contain.
        line = " ".join(part for line in text.splitlines() if (part := line.strip()))
        half = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}")


class OutOfMemory(InputError):
    """Memory ran out; the text names the settings to lower."""


class UnreadableImage(Exception):
    """A source file without a usable image. The text is the reason, equal in every attempt."""
