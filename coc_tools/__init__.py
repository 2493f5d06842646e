"""Chain-of-causality (CoC) labels: short texts that say what a robot does in an episode, and why.

The package will hold the prompts, the backends that run a labelling VLM, the staging and validation of its answers,
the writer that puts them into a LeRobotDataset as language rows of style `coc`, and the scoring of models that speak
them. None of it exists yet; the policy types of `lerobot_policy_world_modality` do not need it.
"""
