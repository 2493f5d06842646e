"""Commands that look at an installation from outside.

They are no part of the plugin, so that they answer before LeRobot is imported, and where the plugin can't be imported.
"""
