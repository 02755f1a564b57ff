"""InputError: what a user can mend. Every other exception is ours to mend."""

LONGEST = 2000  # which holds a command with three long paths in it
# What goes wrong where JSON is read that is none of ours, or cut short.
PARSE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


class InputError(Exception):
    """A flag, file or table that can't be used; its one line names the thing, the value and the cure."""

    def __init__(self, text: str) -> None:
        # What it quotes may hold line breaks, or be a megabyte long; two blanks in a path are of the path.
        line = " ".join(part for line in text.splitlines() if (part := line.strip()))
        cut = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:cut]} … {line[-cut:]}")


class UnreadableImage(Exception):
    """A source file without a usable image. The text is the reason, the same at each attempt."""
