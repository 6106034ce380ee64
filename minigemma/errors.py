"""The one exception for everything a user can get wrong."""


class Error(ValueError):
    """A user's mistake: the message is one line that says what was wrong, where, and what to do.

    The command line prints that line and exits with status 2; a traceback is a bug in minigemma.
    """
