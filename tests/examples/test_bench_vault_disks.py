from collections import Counter

import pytest

from examples.benchmarks import vault_disks as bench


SLOW = {  # half a second each, or more
    "vault add": 3,
    "issue": 3,
    "issue to it": 3,
    "vault pull": 3,
    "push": 3,
    "push of what is written anew": 3,
    "issue --push-to": 3,
    "issue --push-to, its work on the disk": 3,
    "query": 2,
    "key-images export": 2,
}
pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def may_mount(tmp_path):
    """Skips where this user may not mount a disk in memory."""
    try:
        with bench.small_disk(tmp_path / "small"):
            pass
    except (PermissionError, FileNotFoundError):
        pytest.skip("mounting a disk needs root, or `unshare --user --map-root-user --mount`")


@pytest.mark.parametrize("sizes", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_commands_on_a_full_disk_report_it_and_complete_with_free_space(sizes):
    quick = [name for name, case in bench.CASES.items() if name not in SLOW and not case.torch]

    assert bench.measure(sizes, quick, 200 << 10) == Counter({(name, "right"): sizes for name in quick})


@pytest.mark.slow
@pytest.mark.parametrize("sizes", sorted(set(SLOW.values())))
def test_commands_that_register_issue_and_query_do_so_too(sizes):
    names = [name for name, count in SLOW.items() if count == sizes]

    assert bench.measure(sizes, names, 100 << 10) == Counter({(name, "right"): sizes for name in names})


@pytest.mark.slow
def test_commands_that_run_a_model_do_so_too():
    pytest.importorskip("timm")
    names = [name for name, case in bench.CASES.items() if case.torch]

    assert bench.measure(2, names, 100 << 10) == Counter({(name, "right"): 2 for name in names})
