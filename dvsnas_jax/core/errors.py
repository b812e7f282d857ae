"""Errors that are told to the user in one line, and the exit codes of the program."""

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_STOPPED = 75


class UserError(ValueError):
    """The user's input is wrong: the message says what, where and what to do (exit code 2)."""


class Stopped(Exception):  # noqa: N818 - it is not an error
    """SIGTERM or SIGINT arrived and the state was saved (exit code 75); `advice`: what was saved, and what to do."""

    advice = "state saved; start the same command again to go on"


class StoppedEarly(Stopped):  # noqa: N818
    """The same for a command that does not go on where it was: what is done is kept."""

    advice = "what was done is kept; the same command starts anew"
