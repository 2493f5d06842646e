"""`wm-record`: demonstrations by Meta-World's scripted experts."""
