"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Something given to us cannot be used.

    The message is one line that says what is wrong, where, and what to do about it.
    """
