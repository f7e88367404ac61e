"""The list of all errors in the docs is whole, and each message says what to do."""

import re

from docs._extensions.error_messages import AREAS, PACKAGE, errors_as_markdown, messages


MESSAGES = list(messages())


def test_nearly_every_raise_of_the_package_is_in_the_list():
    """Missing are those whose text is made elsewhere, which is listed there if it is an error's. What a reader of a
    format finds wrong with a file becomes a part of another message."""
    raising = re.compile(r"raise (?!Invalid(?:File|Pickle)Error)\w+(?:Error|Warning)\(")
    raised = sum(len(raising.findall(path.read_text())) for path in PACKAGE.rglob("*.py"))

    assert len(MESSAGES) > 0.8 * raised > 300


def test_a_message_made_of_parts_is_whole():
    found = next(each for each in MESSAGES if each.problem.startswith("Nuida's biases"))

    assert found.package in AREAS
    assert found.problem == "Nuida's biases for a coalition of COALITION are finer than 2^-16"
    assert found.remedy == "choose MAX_COALITION or fewer, or a Tardos code."


def test_most_messages_end_in_what_to_do():
    without = [
        each for each in MESSAGES if not each.remedy and "must be" not in each.problem and ", got " not in each.problem
    ]

    assert len(without) < 0.1 * len(MESSAGES), without


def test_the_tables_are_valid_and_show_what_varies_in_italics():
    text = errors_as_markdown()

    assert all(line.count(" | ") == 2 for line in text.splitlines() if line.startswith("| "))
    assert re.search(r"\*path\*", text)
