"""The one exception for everything a user can get wrong."""

LONGEST = 1500  # characters of a message


class Error(ValueError):
    """A user's mistake: the message is one line that says what was wrong, where, and what to do.

    The command line prints that line and exits with status 2; a traceback is a bug in minigemma. What a message quotes
    may come from a stranger's file: control characters are shown escaped, and the middle of a long message is left out.
    """

    def __init__(self, message):
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 300]} ... {shown[-200:]}")
