"""`wm-doctor`: does this installation work?"""
