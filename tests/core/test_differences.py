"""Options that differ between a file and a command are named."""

from world_modality_core.io.option_differences import MAX_SHOWN, option_differences


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


def test_long_values_are_shown_where_they_part():
    (line,) = option_differences({"tasks": "a" * 200 + "b" + "c" * 200}, {"tasks": "a" * 200 + "d" + "c" * 200})
    there, asked = line.removeprefix("tasks: ").removesuffix(" asked").split(" there, ")
    assert "ab" in there and "ad" in asked and len(line) < 2 * MAX_SHOWN + 40


def test_an_end_that_one_value_lacks_is_shown():
    (line,) = option_differences({"tasks": "a" * 200}, {"tasks": "a" * 200 + "z"})
    assert "z asked" in line


def test_values_of_other_types_read_differently():
    assert option_differences({"a": 1}, {"a": "1"}) == ["a: 1 there, '1' asked"]
    assert option_differences({"a": None}, {"a": "None"}) == ["a: None there, 'None' asked"]


def test_equal_descriptions_have_no_differences():
    assert option_differences({"a": {"b": (1, 2)}}, {"a": {"b": [1, 2]}}) == []
