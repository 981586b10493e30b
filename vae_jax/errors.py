"""The one exception that a person is meant to read."""

MAX_LAYERS = 100  # the limit for networks and flows, since every layer takes time to trace and to compile


class UserError(ValueError):
    """Bad input. The message is one line that says what was given, what was expected and what to do.

    The commands print the message after `error:` and exit with status 2. In Python it is a `ValueError`.
    """
