"""LeRobot's SmolVLA with a world memory (docs/smolvla_world.md)."""
