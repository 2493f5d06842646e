"""Label files as one static HTML page (docs/coc_judging.md)."""
