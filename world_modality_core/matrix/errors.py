"""What a user can mend in a study."""


class MatrixError(Exception):
    """A study that can't be run as it is; the message names the key or job, and the remedy."""
