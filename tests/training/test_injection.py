"""R's gradient joins the task's once each time it is armed, wherever the task's comes from."""

import pytest
import torch

from hf_fingerprint.training.injection import GradientInjection


class FewWeights:
    """A term whose gradient is the direction's first number, everywhere."""

    def __init__(self, model):
        self.parameters = {name: p for name, p in model.named_parameters() if p.ndim > 1}

    def add_gradient(self, name, direction, first_row, out):
        assert first_row == 0
        out += direction[0]


@pytest.fixture(params=[False, True], ids=["afterwards", "on the way in"])
def scene(request):
    """Two layers and a convolution, with hooks on them."""
    torch.manual_seed(0)
    layers = {"one": torch.nn.Linear(3, 3), "two": torch.nn.Linear(3, 3), "conv": torch.nn.Conv2d(3, 4, 2)}
    model = torch.nn.ModuleDict(layers)
    return model, GradientInjection(FewWeights(model), before_accumulation=request.param), request.param


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def everything(model):
    images = torch.arange(48.0).view(1, 3, 4, 4) / 48
    return model["two"](model["one"](torch.ones(1, 3))).sum() + model["conv"](images).square().sum()


def bare(model, loss=everything):
    model.zero_grad()
    loss(model).backward()
    found = gradients(model)
    model.zero_grad()
    return found


def test_the_first_backward_pass_carries_it_and_the_next_does_not(scene):
    model, injection, _ = scene
    task = bare(model)

    injection.arm(torch.tensor([2.0]))
    for _ in range(3):
        everything(model).backward()

    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, 3 * task[name] + (2.0 if name.endswith("weight") else 0.0)), name


def test_nothing_is_added_before_arming_and_after_removing(scene):
    model, injection, _ = scene
    task = bare(model)
    everything(model).backward()
    unarmed = gradients(model)
    model.zero_grad()

    injection.arm(torch.tensor([2.0]))
    injection.remove()
    everything(model).backward()

    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, task[name])
        assert torch.equal(unarmed[name], task[name])


def test_arming_again_adds_it_again(scene):
    model, injection, _ = scene
    task = bare(model)

    for size in (2.0, -5.0):
        injection.arm(torch.tensor([size]))
        everything(model).backward()

    assert torch.allclose(model["one"].weight.grad, 2 * task["one.weight"] - 3.0)


def test_a_layer_that_the_pass_skips_gets_it_when_the_pass_ends():
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3), "two": torch.nn.Linear(3, 3)})
    injection = GradientInjection(FewWeights(model), before_accumulation=False)

    def skipping(parts):
        return parts["one"](torch.ones(1, 3)).sum()

    task = bare(model, skipping)
    injection.arm(torch.tensor([2.0]))
    skipping(model).backward()

    assert not injection.has_pending
    assert torch.equal(model["two"].weight.grad, torch.full((3, 3), 2.0))
    assert torch.allclose(model["one"].weight.grad, task["one.weight"] + 2.0)
    (model["two"](torch.ones(1, 3)).sum()).backward()
    assert torch.equal(model["two"].weight.grad, torch.full((3, 3), 3.0))


def test_carriers_that_no_pass_reached_are_seen_to_in_the_end_with_a_scale():
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3), "two": torch.nn.Linear(3, 3)})
    injection = GradientInjection(FewWeights(model), before_accumulation=False)

    injection.arm(torch.tensor([2.0]))
    assert injection.has_pending
    injection.finish(0.25)
    injection.finish(0.25)

    assert not injection.has_pending
    for layer in model.values():
        assert torch.equal(layer.weight.grad, torch.full((3, 3), 0.5))
        assert layer.bias.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_channels_last_and_half_precision_keep_their_layout_and_type(scene, dtype):
    model, injection, before_accumulation = scene
    model["conv"].to(memory_format=torch.channels_last)
    model.to(dtype)

    def convolve(parts):
        images = torch.ones(1, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
        return parts["conv"](images).sum()

    task = bare(model, convolve)
    injection.arm(torch.tensor([2.0]))
    convolve(model).backward()

    gradient = model["conv"].weight.grad
    assert gradient.dtype == dtype
    assert torch.equal(gradient, task["conv.weight"] + 2.0)
    if not before_accumulation:
        assert gradient.is_contiguous(memory_format=torch.channels_last)
