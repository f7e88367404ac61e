"""Whatever a hostile colleague's vault holds: nothing enters that does not verify, the bad row is named, the rest
enters and opens."""

import shutil

import pytest

from hf_fingerprint.vault import Vault
from tests.helpers.hostile_vault_kinds import KINDS
from tests.helpers.hostile_vaults import MergeFixture, changed, check_merge, entry_points, make_world


SOME = [name for number, name in enumerate(KINDS) if number % 5 == 0 or KINDS[name].table in (None, "nothing")]
SOME += [name for name in KINDS if KINDS[name].with_identity and name not in SOME]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> MergeFixture:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", SOME)
def test_nothing_enters_that_does_not_verify(world, tmp_path, name):
    """All kinds, both ways: examples/benchmarks/hostile_merges.py."""
    folder = changed(KINDS[name], world, tmp_path / "theirs")
    mine = Vault(shutil.copytree(world.root / "mine", tmp_path / "mine"))

    check_merge(
        world, mine, folder, KINDS[name], entry_points(folder, world)["pack" if SOME.index(name) % 2 else "folder"]
    )


def test_there_are_more_than_a_hundred_kinds():
    assert len(KINDS) > 200
