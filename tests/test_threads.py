import threading
import time

import pytest

from hf_fingerprint.threads import AHEAD, cpu_count, map_ahead


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_results_come_in_the_order_of_the_items(threads):
    def work(number):
        time.sleep(0.001 * (number % 3))
        return number**2

    assert list(map_ahead(work, range(50), threads)) == [number**2 for number in range(50)]
    assert list(map_ahead(work, [], threads)) == []
    assert cpu_count() >= 1


def test_few_items_are_taken_before_their_turn():
    taken = []
    items = (taken.append(number) or number for number in range(1000))

    results = map_ahead(lambda number: number, items, threads=2)

    assert next(results) == 0
    assert len(taken) <= 2 * AHEAD
    results.close()
    assert len(taken) <= 2 * AHEAD


def test_an_error_ends_the_work():
    done, before = [], threading.active_count()

    def work(number):
        if number == 3:
            raise KeyError(number)
        done.append(number)
        return number

    with pytest.raises(KeyError):
        list(map_ahead(work, range(1000), threads=2))
    assert len(done) < 50
    assert threading.active_count() == before
