import pytest
import torch

from examples.benchmarks.trigger_fitting import ATTACKS, SECRET, fit, fitting_rows
from tests.helpers.small_models import save_timm


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = save_timm(tmp_path_factory.mktemp("fitting") / "base", "test_efficientnet", num_classes=4)
    return fit(folder, None, count=8, decoys=2, steps=6)


def test_a_row_for_each_attack_has_a_share_and_the_time_is_of_the_patterns_alone(fitted):
    images, labels = torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    rows = {row.what: row.measured for row in fitting_rows(fitted, (images, labels), (images, labels), keys=2)}

    assert len(rows) == len(ATTACKS) + 3
    assert float(rows["assigned labels that copies predict, as issued"].rstrip("%")) >= 60
    assert fitted.seconds > 0
    assert len(fitted.trigger_set.images(SECRET)) == 10


def test_the_model_is_the_base_again_after_the_attacks(fitted):
    before = {name: tensor.clone() for name, tensor in fitted.built.module.state_dict().items()}
    images, labels = torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    fitting_rows(fitted, (images, labels), (images, labels), keys=1)

    assert all(torch.equal(tensor, before[name]) for name, tensor in fitted.built.module.state_dict().items())
