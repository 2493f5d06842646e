"""Studies: one YAML of policies x seeds x horizons, run as a resumable queue (docs/studies.md)."""
