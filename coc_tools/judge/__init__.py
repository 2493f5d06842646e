"""Scoring chain-of-causality labels against a reference (docs/coc_judging.md)."""
