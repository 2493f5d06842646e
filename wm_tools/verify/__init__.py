"""`wm-verify`: is a folder whole, what it says it is, and of its source? Changes nothing and asks no network."""
