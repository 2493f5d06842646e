"""What may tell that an episode goes wrong, one file each, behind one Protocol."""
