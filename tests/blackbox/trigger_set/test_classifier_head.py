import pytest
import torch

from hf_fingerprint.blackbox.trigger_set.classifier_head import all_features, features_of, find_head
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.logits import logits_of
from tests.helpers.error_checks import refused
from tests.helpers.tiny_built import tiny


IMAGES = torch.randn(90, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("conv", [False, True])
def test_logits_are_the_features_through_the_head(conv):
    module = tiny(conv=conv).module
    head = find_head(module, IMAGES)

    predicted_labels = all_features(module, head, IMAGES.split(40)) @ head.matrix().T + head.layer.bias

    assert head.name == "head.weight"
    assert head.classes == 5
    assert torch.allclose(predicted_labels, module(IMAGES), atol=1e-5)


def test_features_pass_gradients_on_to_the_images():
    module, images = tiny().module, IMAGES[:2].clone().requires_grad_(True)

    features_of(module, find_head(module, IMAGES), images).sum().backward()

    assert images.grad.abs().sum() > 0


def test_a_head_under_something_else_is_refused():
    module = tiny(after=torch.nn.Softmax(1)).module

    assert "don't come from a linear layer" in refused(find_head, module, IMAGES, error=FingerprintError)


@pytest.mark.parametrize(("classes", "shape"), [(1, "1 x 1"), (5, "1 x 5 x 1 x 1")])
def test_what_has_no_top_class_is_refused(classes, shape):
    """One logit, and a map."""
    module = tiny(classes=classes, after=None if classes == 1 else torch.nn.Unflatten(1, (classes, 1, 1))).module

    text = refused(find_head, module, IMAGES, error=FingerprintError)

    assert f"output of shape {shape}, and trigger labels need two classes or more" in text


def test_no_hook_is_left():
    module = tiny().module
    features_of(module, find_head(module, IMAGES), IMAGES[:1])

    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_logits_are_found_in_an_output_of_transformers():
    class Output:
        logits = IMAGES

    assert logits_of(Output()) is logits_of(IMAGES)
