"""LeRobot's policies with a world memory, each by one declaration (docs/world_variants.md)."""
