"""The one exception that a person is meant to read."""

from typing import Annotated

MAX_LAYERS = 100  # the limit for networks and flows, since every layer takes time to trace and to compile

Natural = Annotated[int, "0 or more"]  # the type of an option of a part that may be 0; another whole number is positive


class UserError(ValueError):
    """Bad input. The message is one line that says what was given, what was expected and what to do.

    The commands print the message after `error:` and exit with status 2. In Python it is a `ValueError`.

    setting: a last sentence, which advises a setting of training. instead: what a command says in its place that only
    uses a run, whose settings are fixed.
    """

    def __init__(self, message: str, setting: str = "", instead: str = ""):
        super().__init__(f"{message} {setting}".rstrip())
        self.message = message
        self.for_a_run = f"{message} {instead}".rstrip()
