"""The one error type that a user is meant to read."""


class UserError(Exception):
    """A mistake the user can mend: names the file, key or value, and says what to do.

    Stage scripts print its message, without a traceback, and exit with status 1.
    """
