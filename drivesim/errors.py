"""Mistakes of the user, told in one line."""


class UserError(Exception):
    """What was found, what was expected, what to do. The command line prints it and exits with code 2."""
