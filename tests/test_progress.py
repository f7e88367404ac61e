from hf_fingerprint.progress import counting, part_of, silent


def test_what_is_counted_adds_up():
    steps = []
    count = counting(lambda *step: steps.append(step), "hashing", 10, done=1)
    count(4)
    count(5)
    assert steps == [("hashing", 5, 10), ("hashing", 10, 10)]


def test_parts_count_for_the_whole_step():
    steps = []
    for before in (0, 3):
        part_of(lambda *step: steps.append(step), "scoring", 6, before)("generating codewords", 3, 3)
    assert steps == [("scoring", 3, 6), ("scoring", 6, 6)]


def test_no_progress_is_progress_too():
    counting(None, "hashing", None)(1)
    silent("hashing", 1, None)
    assert part_of(None, "hashing", 1) is None
