"""Options that differ between a file and a command are named."""

from world_modality_core.differences import MAX_SHOWN, option_differences


def test_what_differs_is_named_with_both_values():
    there = {"seed": 1, "env": {"task": "push", "size": [3, 4]}, "old": "x"}
    asked = {"seed": 2, "env": {"task": "push", "size": (3, 4)}, "new": {"lr": 0.1}}
    assert option_differences(there, asked) == [
        "seed: 1 there, 2 asked",
        "old: x there, None asked",
        "new: None there, {'lr': 0.1} asked",
    ]


def test_nested_options_have_their_whole_name():
    assert option_differences({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}) == ["a.b.c: 1 there, 2 asked"]


def test_long_values_are_cut():
    (line,) = option_differences({"arms": "a" * 1000}, {"arms": ""})
    assert len(line) < MAX_SHOWN + 40 and "..." in line


def test_equal_descriptions_have_no_differences():
    assert option_differences({"a": {"b": (1, 2)}}, {"a": {"b": [1, 2]}}) == []
