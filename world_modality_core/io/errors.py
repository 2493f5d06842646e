"""Errors that a user can mend. Console scripts print them as one line, without a traceback."""


class UserError(Exception):
    """Something that the user can mend; the message names it and the remedy."""


class ConfigError(UserError):
    """An option that can't work; the message names it, its value and the remedy.

    Deliberately no `ValueError`: the command-line parser (draccus) replaces the text of every `ValueError` and
    `TypeError` that a config class raises by "Couldn't instantiate class", and prints that of any other exception.
    """


class DamagedFileError(UserError, ValueError):
    """A file that can't be read as what it should be: truncated, overwritten, or of another kind."""


class ObservationError(UserError, ValueError):
    """What a robot or a simulator shows isn't what a policy was trained on."""


class DiskFullError(UserError, OSError):
    """There is no room for a file."""
