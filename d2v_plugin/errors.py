"""Errors whose message is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can fix: one line that says what is wrong and what to change.

    Commands print the message without a traceback and exit with 2.
    """
