"""The page of faults: every fault has a test, and the page names the tests that there are."""

import re

from fault_matrix import FAULTS, PAGE, fault_tests, page


def test_every_fault_has_a_test_and_every_number_is_that_of_a_fault() -> None:
    held = {number for test in fault_tests() for number in test.faults}
    assert sorted(held) == sorted(FAULTS)


def test_the_page_names_the_tests_that_there_are_and_all_of_them_passed() -> None:
    rows, expected = (
        [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
        for text in (PAGE.read_text(encoding="utf-8"), page({}, seconds=0))
    )
    assert [[*row[:3], re.sub(r" \(\d+\)", "", row[3])] for row in rows] == [
        row[:4] for row in expected
    ]
    for row in rows:
        assert re.fullmatch(r"(\d+ passed)(, \d+ skipped)? \|", row[4]), row
