"""The one exception that a person is meant to read."""

MAX_LAYERS = 100  # every layer takes time to trace and to compile


class UserError(ValueError):
    """Bad input: the message is one line that says what was got, what was expected and what to do.

    The commands print it after `error:` and exit with status 2; from Python it is a `ValueError`.
    """
