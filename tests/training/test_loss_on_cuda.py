"""What the loss term computes in each step stays on the model's GPU."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hf_fingerprint.carriers.filter_mean import FilterMeanMap
from hf_fingerprint.carriers.sign_map import Scratch, SignMap
from hf_fingerprint.training.injection import GradientInjection
from hf_fingerprint.training.loss import DeepMarksLoss
from hf_fingerprint.training.regularizer import Regularizer
from tests.helpers.fake_cuda import CUDA, Transfers, fake_cuda


LENGTH = 64


def network(dtype):
    return torch.nn.Sequential(
        torch.nn.Linear(40, 48, device=CUDA, dtype=dtype), torch.nn.Conv2d(16, 24, 3, device=CUDA, dtype=dtype)
    )


def sign_maps(shapes):
    scratch = Scratch()
    return {n: SignMap(bytes(32), n, np.ones(rows), columns, LENGTH, scratch) for n, (rows, columns) in shapes.items()}


def filter_means(shapes):
    return {n: FilterMeanMap(np.ones((LENGTH, columns)), rows) for n, (rows, columns) in shapes.items()}


class Bound:
    """A mark that is bound already."""

    def __init__(self, regularizer):
        self.regularizer = regularizer

    def bind(self, model, optimizer=None):
        return self.regularizer


@contextmanager
def regularizer(make_maps, dtype=torch.float32):
    """A term on the CPU for a model on CUDA, as it is before the first step."""
    with fake_cuda():
        model = network(dtype)
        shapes = {n: (len(p), p[0].numel()) for n, p in model.named_parameters() if p.ndim > 1}
        maps = make_maps(shapes)
        gram = sum(each.gram() for each in maps.values()) if make_maps is filter_means else None
        yield Regularizer(model, maps, torch.ones(LENGTH), torch.zeros(LENGTH), torch.ones(LENGTH), gram)


both_maps = pytest.mark.parametrize("make_maps", [sign_maps, filter_means])


@both_maps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_copies_nothing_from_or_to_the_cpu(make_maps, dtype):
    with regularizer(make_maps, dtype) as term:
        term.measure()  # moves the maps
        injection = GradientInjection(term, before_accumulation=False)
        with Transfers() as transfers:
            injection.arm(term.measure().direction * 0.1)
            injection.finish()
        gradients = [parameter.grad for parameter in term.parameters.values()]

        assert transfers.names == []
        assert [(each.device, each.dtype) for each in gradients] == [(CUDA, dtype)] * 2


@both_maps
def test_a_written_loss_and_the_embedding_copy_nothing_either(make_maps):
    with regularizer(make_maps) as term, torch.no_grad():
        term.check_related = lambda: None  # reads a value, once
        loss = DeepMarksLoss(None, Bound(term), embed=False)
        loss()
        with Transfers() as transfers:
            value = loss()
            term.embed()

        assert transfers.names == []
        assert value.device == CUDA


def test_gradients_with_channels_last_are_added_where_they_are():
    with regularizer(sign_maps) as term:
        direction = term.measure().direction
        convolution = term.parameters["1.weight"]
        convolution.grad = torch.zeros_like(convolution).to(memory_format=torch.channels_last)
        injection = GradientInjection(term, before_accumulation=False)
        with Transfers() as transfers:
            injection.arm(direction)
            injection.finish()

        assert transfers.names == []
        assert convolution.grad.is_contiguous(memory_format=torch.channels_last)


def test_a_product_of_two_devices_is_noticed():
    with regularizer(sign_maps) as term:
        direction = term.measure().direction.cpu()

        with pytest.raises(RuntimeError, match="same device"):
            term.gradient("0.weight", direction)
