"""InputError: what a user can mend. Every other exception is ours to mend."""


class InputError(Exception):
    """A flag, file or table that can't be used; its one line names the thing, the value and the cure."""
