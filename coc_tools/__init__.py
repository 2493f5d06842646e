"""Chain-of-causality (CoC) labels: short texts that say what a robot does in an episode, step by step, and why.

    schema, store, label_lines    what a label is; the JSONL file that labels are kept in; reading any such file
    episodes, keyframes, request  what a labelling model is shown of an episode
    backends, prompts             who labels: an OpenAI-compatible endpoint, transformers, the simulator
    validate, pipeline, cost      checking replies, running and resuming, what it costs
    labelling, process_shards     the steps of `coc-label`, in one process or several
    language_rows, dataset_writer labels as LeRobot language rows of style `coc`
    import_export                 the plain JSONL format (`episode_index`, `coc_text`)

The command is `coc-label` (docs/coc.md).
"""

TOOL_VERSION = "1"
