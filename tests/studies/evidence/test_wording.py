"""No word is stronger than its test."""

from dataclasses import replace

import pytest

from world_modality_core.studies.evidence.wording import TwoSides, answer_of, detectable, p_text

CLEAR = TwoSides("F", "A", 0.3, 0.2, 0.4, True, p=0.001, p_holm=0.004, population="this checkpoint", detectable="much")
TIE = replace(CLEAR, difference=0.0, low=-0.05, high=0.05, p=0.9, p_holm=0.9)


@pytest.mark.parametrize(
    ("tested", "answer"),
    [
        (CLEAR, "better"),
        (replace(CLEAR, is_ahead=False), "worse"),
        (replace(CLEAR, p_holm=0.06), "no difference shown"),  # whatever the interval and the plain p say
        (replace(CLEAR, open_after=(40, 100)), "open"),
        (TIE, "no difference shown"),
        (replace(TIE, margin=0.1, margin_p=(0.2, 0.01)), "no difference shown"),
        (replace(TIE, margin=0.1, margin_p=(0.01, 0.2)), "not worse"),
        (replace(TIE, margin=0.1, margin_p=(0.01, 0.02)), "as good"),
        (replace(CLEAR, margin=0.5, margin_p=(0.01, 0.02)), "better"),
    ],
)
def test_words_need_their_tests(tested, answer):
    said = answer_of(tested, 0.05)
    assert said.answer == answer
    assert [word for word in ("better", "worse", "as good") if f": {word}" in said.text] == (
        [answer] if answer in ("better", "worse", "as good") else []
    )
    assert "for this checkpoint" in said.text


def test_what_pairs_can_not_see_is_said():
    assert detectable(4, None) == "4 pairs can't detect any effect"
    assert "up to 40 points" in detectable(360, 0.13, 3, 0.4)
    assert "any number of points" in detectable(90, 0.3, 2, None)
    assert "up to" not in detectable(400, 0.1)


def test_tasks_that_differ_are_said_beside_the_mean():
    assert "tasks differ in it (p 0.012)" in answer_of(replace(TIE, heterogeneity_p=0.0123), 0.05).text
    assert "differ in it" not in answer_of(replace(TIE, heterogeneity_p=0.3), 0.05).text


@pytest.mark.parametrize(("p", "text"), [(0.0123, "0.012"), (0.00996, "0.01"), (9e-5, "< 0.0001"), (1.0, "1")])
def test_p_values_are_rounded_once(p, text):
    assert p_text(p) == text


@pytest.mark.parametrize(
    ("p", "alpha", "text"),
    [(0.0504, 0.05, "0.0504"), (0.0496, 0.05, "0.05"), (0.05, 0.05, "0.05"), (0.05 + 1e-9, 0.05, "0.050000001"),
     (0.01004, 0.01, "0.01004"), (0.01004, 0.05, "0.01"), (9e-5, 5e-5, "9e-05"), (0.0251, 0.025, "0.0251")],
)  # fmt: skip
def test_a_rounded_p_stays_on_its_side_of_the_level(p, alpha, text):
    assert p_text(p, alpha) == text


def test_a_sequential_answer_has_no_interval_that_holds_for_one_look_only():
    decided = answer_of(replace(CLEAR, share=(0.6, 0.9)), 0.05).text
    assert "share of scenes won 0.60 to 0.90" in decided
    assert "points" not in decided
    assert "points" not in answer_of(replace(CLEAR, open_after=(40, 100)), 0.05).text
