"""What a user can mend in a study."""

from world_modality_core.io.errors import UserError


class MatrixError(UserError):
    """A study that can't be run as it is; the message names the key or job, and the remedy."""
