import pytest
import timm
import torch

from examples._common.real_inputs import digits
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy import Bottleneck, Partition, Student, init_task_directions


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def scene():
    """A model that knows digits a little, cut; images' features and labels."""
    from examples._common.training import fine_tune

    torch.manual_seed(0)
    images, labels = digits(32)
    model = timm.create_model("test_resnet", num_classes=10)
    fine_tune(model, images[:500], labels[:500], 2e-3, 60)
    partition = Partition(model, "layer1", (3, 32, 32))
    return partition, partition.client_part(images), labels


def nearest_mean(codes: torch.Tensor, labels: torch.Tensor) -> float:
    """How often the nearest class's mean, of the first 1,200, is the right one's among the others."""
    means = torch.stack([codes[:1200][labels[:1200] == label].mean(0) for label in range(10)])
    return float((torch.cdist(codes[1200:], means).argmin(1) == labels[1200:]).float().mean())


def test_few_numbers_separate_the_classes_where_principal_components_do_not(scene):
    partition, features, labels = scene
    weights = {name: tensor.clone() for name, tensor in partition.model.state_dict().items()}
    ours, principal = (Bottleneck(partition.shape, 9, flatten_features=True) for _ in range(2))
    init_task_directions(partition, ours, features[:1200])
    principal.init_principal_components(features[:1200])

    torch.manual_seed(0)
    right = []
    for bottleneck in (ours, principal):
        bottleneck.sigma = 0.5
        right.append(nearest_mean(bottleneck.send(features).flatten(1), labels))

    assert right[0] > 0.75 and right[0] > right[1] + 0.1
    assert all(torch.equal(weights[name], tensor) for name, tensor in partition.model.state_dict().items())


@pytest.mark.parametrize("rest", [0.3, 0.6])
def test_what_is_sent_beyond_the_classes_has_the_requested_power(scene, rest):
    partition, features, _ = scene
    bottleneck = Bottleneck(partition.shape, 20, flatten_features=True)

    init_task_directions(partition, bottleneck, features[:1200], rest)

    deviations = (bottleneck.rows(features[:1200]) @ bottleneck.squeeze.T).std(0)
    assert torch.allclose(deviations[:9], torch.ones(9), atol=1e-3)
    assert torch.allclose(deviations[9:], torch.full((11,), rest), atol=1e-3)


def test_it_also_chooses_among_the_channels_of_each_place(scene):
    partition, features, _ = scene
    bottleneck = Bottleneck(partition.shape, 12)

    init_task_directions(partition, bottleneck, features[:600])

    assert bottleneck.encode(features[:5]).shape == (5, 12, 8, 8)
    assert torch.linalg.matrix_rank(bottleneck.squeeze) == 12


def test_a_student_learns_codes_and_is_deterministic(scene):
    partition, features, labels = scene
    bottleneck = Bottleneck(partition.shape, 20, sigma=0.5, flatten_features=True)
    init_task_directions(partition, bottleneck, features[:1200])
    torch.manual_seed(0)
    student = Student(bottleneck.code_shape, 10)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    sent = bottleneck.send(features[:1200])
    for _ in range(120):
        pick = torch.randint(1200, (64,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(sent[pick]), labels[pick]).backward()
        optimizer.step()

    pseudo_labels = student.pseudo_labels(bottleneck, features[1200:])

    assert torch.allclose(pseudo_labels.sum(1), torch.ones(len(pseudo_labels)), atol=1e-4)
    assert float((pseudo_labels.argmax(1) == labels[1200:]).float().mean()) > 0.8
    assert torch.equal(pseudo_labels, student.pseudo_labels(bottleneck, features[1200:]))


@pytest.mark.slow
def test_directions_are_found_among_more_numbers_than_a_covariance_could_hold(scene):
    model = scene[0].model
    images, labels = digits(64)
    partition = Partition(model, "conv1", (3, 64, 64))
    features = partition.client_part(images[::2])
    bottleneck = Bottleneck(partition.shape, 12, sigma=0.5, flatten_features=True)

    init_task_directions(partition, bottleneck, features[:600])

    assert bottleneck.squeeze.shape == (12, 32 * 32 * 32)
    right = separated(bottleneck, features, labels[::2])
    by_chance = []
    for seed in range(3):  # the same of directions that nobody chose: how good the base is depends on the processor
        drawn = torch.randn(bottleneck.squeeze.shape, generator=torch.Generator().manual_seed(seed))
        spread = (bottleneck.rows(features[:600]) @ drawn.T).std(0)
        bottleneck.squeeze.data.copy_(drawn / spread[:, None])
        by_chance.append(separated(bottleneck, features, labels[::2]))
    assert right > 0.5
    assert right > max(by_chance) + 0.2


def separated(bottleneck: Bottleneck, features: torch.Tensor, labels: torch.Tensor) -> float:
    """How often the nearest class's mean of nine numbers that are sent, of the first 600, is the right one's."""
    torch.manual_seed(0)
    codes = bottleneck.send(features)[:, :9]
    means = torch.stack([codes[:600][labels[:600] == label].mean(0) for label in range(10)])
    return float((torch.cdist(codes[600:], means).argmin(1) == labels[600:]).float().mean())


def test_fewer_images_than_numbers_are_refused(scene):
    partition, features, _ = scene
    with pytest.raises(FingerprintError, match="20 images are too few for 33 directions: give more"):
        init_task_directions(partition, Bottleneck(partition.shape, 33, flatten_features=True), features[:20])
