"""`wm-prophet`: a Prophet from recorded latents alone, with or without actions beside them (docs/prophet.md).

cli.py is the command, training_options.py its options, train_prophet.py what it does: data.py makes one sequence of
frames out of several companions, episode_split.py chooses among them, training.py is the loop, saved_prophet.py the
folder that comes out and that policies start from.
"""
