"""Evidence: per-episode records, intervals, paired comparisons, verdicts."""
