from collections import Counter

import bench_vault_disks as bench
import pytest


SLOW = ("vault add", "issue", "issue to it", "vault pull")  # half a second each


@pytest.fixture(autouse=True)
def may_mount(tmp_path):
    """Skips where this user may not mount a disk in memory."""
    try:
        with bench.small_disk(tmp_path / "small"):
            pass
    except (PermissionError, FileNotFoundError):
        pytest.skip("mounting a disk needs root, or `unshare --user --map-root-user --mount`")


def test_commands_on_10_sizes_of_a_full_disk_say_so_and_do_it_once_there_is_room():
    quick = [name for name in bench.CASES if name not in SLOW]

    assert bench.measure(10, quick, 200 << 10) == Counter({(name, "right"): 10 for name in quick})


def test_commands_that_register_and_issue_do_so_too():
    assert bench.measure(3, list(SLOW), 100 << 10) == Counter({(name, "right"): 3 for name in SLOW})
