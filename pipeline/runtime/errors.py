"""Errors with a one-line message for the user."""


class InputError(Exception):
    """An input cannot be used. The message is one line: what is wrong, where, and what to do."""


class ArtifactError(InputError):
    """A stage's output is missing, damaged, or of another version or run."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path} {reason}; run 'dvc repro' to create it")


def sanitize(text: str) -> str:
    """Replace characters that move a terminal's cursor, break lines, or hide or reorder letters.

    Names and captions are untrusted input.
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def pluralize(number: int, noun: str) -> str:
    """Return `1 image`, `2,000 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
