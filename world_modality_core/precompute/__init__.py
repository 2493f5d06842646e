"""`wm-precompute`: from a source LeRobotDataset to its companion of world latents (docs/precompute.md).

cli.py is the command, precompute_options.py its options, steps.py the order of its steps: source.py reads frames,
encode.py turns them into latents, staging.py keeps them until all are done, assemble.py writes the datasets.
"""
