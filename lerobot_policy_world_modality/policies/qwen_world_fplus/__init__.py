"""A Qwen-VL that acts from its action tokens' states (docs/qwen_world_fplus.md)."""
