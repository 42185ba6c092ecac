"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Something given to us cannot be used.

    The message is one line that says what is wrong, where, and what to do about it.
    """


def sanitize(text: str) -> str:
    """The text without what would move a terminal's cursor, end its line, hide or reorder its
    letters.

    Names and captions come from strangers.
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
