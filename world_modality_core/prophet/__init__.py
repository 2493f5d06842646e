"""`wm-prophet`: a Prophet from recorded latents alone, with or without actions beside them (docs/prophet.md).

options.py holds the options, cli.py is the command and train_prophet.py what it does; data.py makes one sequence of
frames out of several companions, episode_split.py chooses among them, training.py is the loop, saved_prophet.py the
folder that comes out and that policies start from.
"""
