"""Errors that are the user's to mend; scripts print them without a traceback and exit with status 2."""


class UserError(Exception):
    """A mistake in a file, a key or an argument.

    The message names the file, key or row, says what was expected, and what to do.
    """
