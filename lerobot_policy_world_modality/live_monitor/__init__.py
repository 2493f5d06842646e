"""The monitor where LeRobot acts: a processor step, and what wm-eval tells of it."""
