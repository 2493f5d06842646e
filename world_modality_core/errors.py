"""Errors that a user can mend."""


class ConfigError(Exception):
    """An option that can't work; the message names it, its value and the remedy.

    Deliberately no `ValueError`: the command-line parser (draccus) replaces the text of every `ValueError` and
    `TypeError` that a config class raises by "Couldn't instantiate class", and prints that of any other exception.
    """
