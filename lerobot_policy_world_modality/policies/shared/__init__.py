"""What every policy with a world does alike."""
