from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_fingerprint.models import LazyImages, lazy_synthetic_images
from hf_fingerprint.registration.output_comparison import compare_outputs
from hf_fingerprint.registration.sensitivity import measure_sensitivity
from tests.helpers.small_models import build, save_timm


KIND = "single_label"
EIGHT = LazyImages.of(torch.randn(8, 3, 160, 160, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A model that is sure of some of its answers, inputs, and the sensitivity of its linear weights."""
    built = build(save_timm(tmp_path_factory.mktemp("vit") / "model", "test_vit", num_classes=10))
    module = built.module
    torch.manual_seed(1)
    with torch.no_grad():
        module.head.weight.normal_(std=0.3)
    images = lazy_synthetic_images(built, 32)
    names = [n for n, p in module.named_parameters() if n.startswith("blocks") and p.ndim == 2]
    return SimpleNamespace(
        module=module, images=images, names=names, sensitivity=measure_sensitivity(module, images, names, KIND)
    )


def marked(module: torch.nn.Module, names: list[str], eps: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The weights with a mark of random signs."""
    rng, parameters, found = np.random.default_rng(seed), dict(module.named_parameters()), {}
    for name, e in zip(names, eps, strict=True):
        values = parameters[name].detach().numpy()
        amplitude = e * np.sqrt((values**2).mean(1, keepdims=True))
        found[name] = (values + amplitude * rng.choice([-1, 1], values.shape)).astype(np.float32)
    return found


def test_the_output_moves_by_what_the_sensitivity_predicts(vit):
    assert len(vit.names) == len(vit.sensitivity) == 24
    for eps in (0.002, 0.01):
        uniform = np.full(24, eps)
        predicted = (uniform**2 * vit.sensitivity).sum()
        measured = [
            compare_outputs(vit.module, vit.images, repeat(marked(vit.module, vit.names, uniform, s)), KIND).kl
            for s in range(3)
        ]
        assert predicted / 2 < np.mean(measured) < 2 * predicted


def test_each_tensors_share_is_right_and_not_only_their_sum(vit):
    order = np.argsort(vit.sensitivity)
    for index in (order[0], order[12], order[-1]):
        measured = [
            compare_outputs(vit.module, vit.images, repeat(marked(vit.module, [vit.names[index]], [0.02], s)), KIND).kl
            for s in range(4)
        ]
        assert 0.4 < np.mean(measured) / (0.02**2 * vit.sensitivity[index]) < 2.5


def test_a_weight_that_reaches_no_output_has_no_sensitivity():
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.dead = (torch.nn.Linear(12, 5) for _ in range(3))

        def forward(self, x):
            return self.used(x.flatten(1)) + 0 * self.dead(x.flatten(1))

    names = ["used.weight", "unused.weight", "dead.weight"]

    found = measure_sensitivity(Half().eval(), LazyImages.of(torch.randn(9, 3, 2, 2)), names, KIND)

    assert found[0] > 0
    assert list(found[1:]) == [0, 0]


def test_the_sensitivity_of_a_linear_softmax_is_the_one_on_paper():
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4, bias=False)
    module = torch.nn.Sequential(torch.nn.Flatten(), layer).eval()
    images = torch.randn(4096, 6, 1, 1)

    found = measure_sensitivity(module, LazyImages.of(images), ["1.weight"], KIND)

    with torch.no_grad():
        p, x = module(images).double().softmax(-1), images.flatten(1).double()
        fisher = torch.einsum("nk,nj->kj", p * (1 - p), x**2) / len(x)  # of weight (k, j), by hand
        expected = (layer.weight.double().square().mean(1, keepdim=True) * fisher).sum() / 2
    assert found[0] == pytest.approx(float(expected), rel=0.1)


def test_measuring_changes_neither_the_weights_nor_what_is_trainable(vit):
    parameters = dict(vit.module.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    trainable = {name: i % 3 != 0 for i, name in enumerate(parameters)}
    for name, p in parameters.items():
        p.requires_grad_(trainable[name])
    try:
        measure_sensitivity(vit.module, EIGHT, vit.names, KIND)
        compare_outputs(vit.module, EIGHT, repeat(marked(vit.module, vit.names, np.full(24, 0.01), 0)), KIND)

        assert {name: p.requires_grad for name, p in parameters.items()} == trainable
        assert all(torch.equal(before[name], p) for name, p in parameters.items())
        assert all(p.grad is None for p in parameters.values())
        assert not vit.module.training
    finally:
        vit.module.requires_grad_(True)


def test_a_failure_leaves_the_model_as_it_was(vit, monkeypatch):
    parameters = dict(vit.module.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return original(*arguments)

    original = vit.module.forward
    monkeypatch.setattr(vit.module, "forward", failing)
    with pytest.raises(RuntimeError):
        measure_sensitivity(vit.module, vit.images, vit.names, KIND)
    calls.clear()
    with pytest.raises(RuntimeError):
        compare_outputs(vit.module, EIGHT, repeat(marked(vit.module, vit.names, np.full(24, 0.01), 0)), KIND)

    assert all(p.requires_grad for p in parameters.values())
    assert all(torch.equal(before[name], p) for name, p in parameters.items())


def test_nothing_changed_is_a_divergence_of_nothing(vit):
    same = {name: p.detach().numpy().copy() for name, p in vit.module.named_parameters() if name in vit.names}

    found = compare_outputs(vit.module, vit.images, repeat(same), KIND)

    assert (found.kl, found.kl_interval, found.agreement) == (0.0, (0.0, 0.0), 1.0)


def test_divergence_and_agreement_are_the_textbooks(vit):
    changed = marked(vit.module, vit.names, np.full(24, 0.5), 0)

    found = compare_outputs(vit.module, vit.images, repeat(changed), KIND)

    images = torch.cat(list(vit.images.batches(32)))
    with torch.no_grad():
        p = vit.module(images).log_softmax(-1)
        state = {n: t.clone() for n, t in vit.module.state_dict().items()}
        vit.module.load_state_dict({**state, **{n: torch.from_numpy(v) for n, v in changed.items()}})
        q = vit.module(images).log_softmax(-1)
        vit.module.load_state_dict(state)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    same = p.argmax(-1) == q.argmax(-1)
    assert found.kl == pytest.approx(float(expected), rel=1e-3)
    assert (found.images, found.decisions, found.agreeing) == (32, 32, int(same.sum()))
    assert 0 < found.agreement < 1


def test_a_stronger_mark_costs_its_square(vit):
    weak, strong = (
        compare_outputs(vit.module, vit.images, repeat(marked(vit.module, vit.names, np.full(24, eps), 3)), KIND).kl
        for eps in (0.002, 0.006)
    )

    assert strong / weak == pytest.approx(9, rel=0.2)


def test_progress_counts_the_images(vit):
    steps = []

    images = LazyImages.of(torch.randn(19, 3, 160, 160))
    measure_sensitivity(vit.module, images, vit.names[:1], KIND, lambda *step: steps.append(step))

    assert steps[-1] == ("measuring the sensitivity", 19, 19)
