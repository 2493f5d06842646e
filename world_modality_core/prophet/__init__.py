"""`wm-prophet`: a Prophet from recorded latents alone, with or without actions beside them (docs/prophet.md).

cli.py is the command, options.py its options and the episodes that they mean; data.py makes one sequence of frames out
of several companions, training.py is the loop, checkpoint.py the folder that comes out and that policies start from.
"""
