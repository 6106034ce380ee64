"""The one exception for everything a user can get wrong."""

LONGEST = 1500  # characters of a message


class Error(ValueError):
    """A user's mistake. The message is one line: what was wrong, where, and what to do.

    The command line prints that line and exits with status 2; a traceback is a bug in minigemma. A message may quote a
    stranger's file, so control characters are escaped, and a long message loses its middle.
    """

    def __init__(self, message):
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 300]} ... {shown[-200:]}")
