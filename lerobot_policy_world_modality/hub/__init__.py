"""Checkpoints, companions and labels on the Hugging Face Hub."""
