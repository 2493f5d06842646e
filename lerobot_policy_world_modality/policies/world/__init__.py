"""world_A to world_F: one trunk, five types (docs/policies.md)."""
