import pytest

from examples.benchmarks import vault_kills as bench_vault_kills


pytestmark = pytest.mark.integration


@pytest.mark.parametrize("seed", [1])
def test_vault_init_killed_at_20_points_is_completed_by_the_same_command(seed):
    assert bench_vault_kills.run(20, seed) == {"completed": 20}
