"""`wm-verify`: is what lies in a folder whole, its own, and what it says it is?"""
