"""Errors that are told to the user in one line, and the exit codes of the program."""

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_STOPPED = 75


class UserError(ValueError):
    """The user's input is wrong: the message says what, where and what to do (exit code 2)."""


class Stopped(Exception):  # noqa: N818 - it is not an error
    """SIGTERM or SIGINT arrived and the state was saved (exit code 75)."""
