"""Evidence from recorded episodes: statistics, the queue of a study, the report. Imports no torch."""
