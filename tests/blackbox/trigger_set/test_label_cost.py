import torch

from hf_fingerprint.blackbox.trigger_set.classifier_head import Head
from hf_fingerprint.blackbox.trigger_set.label_cost import LabelCost, log_cost, missing_logits
from hf_fingerprint.blackbox.trigger_set.optimize import inverse_second_moment


VIEWS, COUNT, WIDTH, CLASSES = 3, 7, 24, 5


def setting(bias=True):
    rng = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(WIDTH, CLASSES, bias=bias)
    features = [torch.randn(COUNT, WIDTH, generator=rng) for _ in range(VIEWS)]
    metric = inverse_second_moment(torch.randn(100, WIDTH, generator=rng))
    return features, [Head("fc.weight", layer)] * VIEWS, metric


def reference(features, heads, metric, view, images):
    """The gradient by autograd."""
    wide = [each.double().requires_grad_(which == view) for which, each in enumerate(features)]
    (gradient,) = torch.autograd.grad(log_cost(wide, heads, metric), wide[view])
    return gradient[images]


def test_the_gradient_is_that_of_the_cost_after_each_change():
    features, heads, metric = setting()
    cost = LabelCost(features, heads, metric)
    rng = torch.Generator().manual_seed(1)

    for view, images in [(0, slice(0, 3)), (2, slice(3, 7)), (1, slice(0, 7)), (0, slice(6, 7))]:
        new = torch.randn(images.stop - images.start, WIDTH, generator=rng)
        features[view][images] = new
        found = cost.update(view, images, new)
        wanted = reference(features, heads, metric, view, images)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def test_a_step_against_the_gradient_lowers_the_cost():
    features, heads, metric = setting(bias=False)
    cost, before = LabelCost(features, heads, metric), log_cost([f.double() for f in features], heads, metric)
    every = slice(0, COUNT)
    gradient = cost.update(1, every, features[1])
    features[1] -= 1e-2 * gradient / gradient.norm()

    assert log_cost([f.double() for f in features], heads, metric) < before


def test_a_label_that_no_logit_favors_lacks_the_margin_and_more():
    layer = torch.nn.Linear(2, 4)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()

    missing = missing_logits(torch.zeros(3, 2, dtype=torch.float64), Head("fc.weight", layer))

    assert torch.allclose(missing, torch.full((3,), 2.0 + torch.tensor(4.0).log().item(), dtype=torch.float64))
