"""Offline corruption tests of a checkpoint's world memory (docs/interventions.md)."""
