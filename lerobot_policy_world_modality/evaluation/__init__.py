"""`wm-eval`: closed-loop evaluation with pinned scenes, arms from one checkpoint, and one row per episode."""
