import pytest

from hf_fingerprint.launcher import is_first_launched, launch_id, own_device, process_count
from hf_fingerprint.progress import show_progress, silent


NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launched(monkeypatch):
    """Sets the environment of torchrun for one of four processes."""

    def launch(rank: int) -> None:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank % 2, "WORLD_SIZE": 4}.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_without_a_launcher_a_process_is_the_only_one():
    assert (process_count(), is_first_launched(), own_device("cuda")) == (1, True, "cuda")


def test_each_launched_process_has_its_own_device(launched):
    launched(3)

    assert (process_count(), is_first_launched()) == (4, False)
    assert [own_device(name) for name in ("cuda", "cuda:0", "cpu", "meta")] == ["cuda:1", "cuda:0", "cpu", "meta"]
    launched(0)
    assert (is_first_launched(), own_device("cuda")) == (True, "cuda:0")


def test_the_processes_that_mpirun_starts_are_counted_too(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")

    assert (process_count(), is_first_launched()) == (2, False)


@pytest.mark.parametrize("value", ["", "many", "-1", "2.5"])
def test_a_variable_that_is_no_number_is_passed_over(monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)

    assert process_count() == 1


def test_processes_of_one_launcher_have_the_same_launch_and_others_have_not(launched):
    alone = {launch_id(), launch_id()}
    launched(0)
    first = launch_id()
    launched(3)

    assert len(alone) == 2
    assert first == launch_id()
    assert first not in alone


def test_the_first_process_alone_shows_progress(launched):
    launched(1)
    with show_progress() as others:
        assert others is silent
    launched(0)
    with show_progress() as first:
        assert first is not silent
