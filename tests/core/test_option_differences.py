"""Options that differ between a file and a command are named."""

from world_modality_core.io.option_differences import MAX_SHOWN, option_differences


def test_what_differs_is_named_with_both_values():
    saved = {"seed": 1, "env": {"task": "push", "size": [3, 4]}, "old": "x"}
    asked = {"seed": 2, "env": {"task": "push", "size": (3, 4)}, "new": {"lr": 0.1}}
    assert option_differences(saved, asked) == [
        "seed: saved 1, asked for 2",
        "old: saved x, asked for None",
        "new: saved None, asked for {'lr': 0.1}",
    ]


def test_nested_options_have_their_whole_name():
    assert option_differences({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}) == ["a.b.c: saved 1, asked for 2"]


def test_long_values_are_cut():
    (line,) = option_differences({"arms": "a" * 1000}, {"arms": ""})
    assert len(line) < MAX_SHOWN + 40 and "..." in line


def test_long_values_are_shown_where_they_part():
    (line,) = option_differences({"tasks": "a" * 200 + "b" + "c" * 200}, {"tasks": "a" * 200 + "d" + "c" * 200})
    saved, asked = line.removeprefix("tasks: saved ").split(", asked for ")
    assert "ab" in saved and "ad" in asked and len(line) < 2 * MAX_SHOWN + 40


def test_an_end_that_one_value_lacks_is_shown():
    (line,) = option_differences({"tasks": "a" * 200}, {"tasks": "a" * 200 + "z"})
    assert line.endswith("az")


def test_values_of_other_types_read_differently():
    assert option_differences({"a": 1}, {"a": "1"}) == ["a: saved 1, asked for '1'"]
    assert option_differences({"a": None}, {"a": "None"}) == ["a: saved None, asked for 'None'"]


def test_equal_descriptions_have_no_differences():
    assert option_differences({"a": {"b": (1, 2)}}, {"a": {"b": [1, 2]}}) == []
