"""A classifier cut in two: a client part, run by data holders, and a server part, trained by the owner.

The model is not split physically. The client part runs it up to the cut, the server part runs it with the cut's output
replaced. Any timm or transformers model can thus be cut at any module that no branch bypasses.

The client part is never trained on private images. A malicious owner could train it step by step into one that hides
nothing (D. Pasquini, G. Ateniese, M. Bernaschi, "Unleashing the Tiger", arXiv 2012.02670). Two sends of one image
would differ by more than noise, and the client parts of several data holders would diverge.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.logits import logits_of


_TOLERANCE = 1e-4


class Partition:
    """A model with a cut.

    Args:
        model (`torch.nn.Module`): a classifier from images `(batch, channels, height, width)` to logits, as a tensor
            or an object with `logits`. It is not copied.
        at (`str`): the module whose output is the cut, by its name in `named_modules`, such as `"blocks.2"`.
        size (`tuple[int, int, int]`): channels, height and width of an image.

    Attributes:
        shape (`tuple[int, ...]`): the shape of one image's features: `(channels, height, width)`,
            `(tokens, channels)` or `(channels,)`.
        client_tensors (`frozenset[str]`): names of the client part's parameters and buffers.

    Raises:
        [`FingerprintError`]: if there is no such module, its output is not a tensor with one row per image, a branch
            bypasses it, or a parameter is used on both sides.
    """

    def __init__(self, model: torch.nn.Module, at: str, size: tuple[int, int, int]):
        modules = dict(model.named_modules())
        if at not in modules or not at:
            near = get_close_matches(at, [name for name in modules if name], 3, 0.4)
            advice = f"choose {' or '.join(near)}" if near else "see model.named_modules()"
            raise FingerprintError(f"The model has no module {at!r} to cut at: {advice}.")
        self.model, self.at, self.size = model, at, (size[0], size[1], size[2])
        self._cut, self._client_modules = modules[at], set[torch.nn.Module]()
        with _eval_mode_with_gradients(model):
            self.shape, self.client_tensors = self._inspect_model()

    def __repr__(self) -> str:
        return f"Partition(at={self.at!r}, size={self.size}, shape={self.shape})"

    @torch.no_grad()
    def client_part(self, images: torch.Tensor) -> torch.Tensor:
        """The features `(batch, *shape)` of images `(batch, *size)` at the cut, without gradients."""
        with self._client_eval_mode():
            return self._run_to_cut(images)

    def server_part(self, features: torch.Tensor) -> torch.Tensor:
        """The logits `(batch, classes)` of features `(batch, *shape)`, with gradients for these and for the server
        part's weights. Runs in the model's current mode."""
        blank = torch.zeros((1, *self.size), dtype=features.dtype, device=features.device)
        with self._client_eval_mode():
            return self._run_from_cut(features, blank)

    def forward_to_cut(self, features: torch.Tensor, to: "Partition") -> torch.Tensor:
        """The features at a deeper cut of the same model, from features at this one."""
        blank = torch.zeros((1, *self.size), dtype=features.dtype, device=features.device)
        with _hook(self._cut.register_forward_hook(lambda module, inputs, output: features)):
            return to._cut_output(blank)

    def server_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that the owner trains, by name: all but those of the client part."""
        return {name: p for name, p in self.model.named_parameters() if name not in self.client_tensors}

    def _run_to_cut(self, images: torch.Tensor) -> torch.Tensor:
        output = self._cut_output(images)
        if not isinstance(output, torch.Tensor) or output.dim() not in (2, 3, 4) or len(output) != len(images):
            raise FingerprintError(f"{self.at} returns no tensor with one row per image: choose another module.")
        return output

    def _cut_output(self, images: torch.Tensor) -> Any:
        """The output of the cut's module."""

        def stop(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            raise _ReachedCut(output)

        with _hook(self._cut.register_forward_hook(stop)):
            try:
                self.model(images)
            except _ReachedCut as reached:
                return reached.output
        raise FingerprintError(f"{self.at} is not called when the model runs: choose another module.")

    def _run_from_cut(self, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        with _hook(self._cut.register_forward_hook(lambda module, inputs, output: features)):
            return class_logits(self.model(images))

    @contextmanager
    def _client_eval_mode(self) -> Iterator[None]:
        """Puts the client part in evaluation mode, so that its running statistics do not change."""
        training_modules = [module for module in self._client_modules if module.training]
        for module in training_modules:
            module.training = False
        try:
            yield
        finally:
            for module in training_modules:
                module.training = True

    def _inspect_model(self) -> tuple[tuple[int, ...], frozenset[str]]:
        noise = torch.randn((2, *self.size), generator=torch.Generator().manual_seed(0))
        images = noise.to(next(self.model.parameters()).device)
        with ExitStack() as hooks, torch.enable_grad():
            for module in self.model.modules():
                hooks.enter_context(_hook(module.register_forward_hook(lambda m, i, o: self._client_modules.add(m))))
            features = self._run_to_cut(images)
        client_part = _leaf_tensors(features)
        with torch.enable_grad():
            first_logits = self._run_from_cut(features.detach(), images[:1])
        with torch.no_grad():
            full_logits, first = class_logits(self.model(images)), first_logits.detach()
            others = torch.stack([self._run_from_cut(features.detach(), images[1:]), full_logits])
        if float((first - others).abs().max()) > _TOLERANCE * float(full_logits.abs().max()):
            raise FingerprintError(f"A branch bypasses {self.at}: choose a module that no branch bypasses.")
        shared, names = client_part & _leaf_tensors(first_logits), set()
        for name, parameter in self.model.named_parameters():
            if parameter in shared:
                raise FingerprintError(f"{name} is used on both sides of {self.at}: choose another module.")
            if parameter in client_part:
                names.add(name)
        for name, module in self.model.named_modules():
            if module in self._client_modules:
                names |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)}
        return tuple(features.shape[1:]), frozenset(names)


def class_logits(output: Any) -> torch.Tensor:
    """The logits `(batch, classes)` in a classifier's output. Raises a [`FingerprintError`] for another shape."""
    logits = logits_of(output)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise FingerprintError("The model returns no logits of shape (batch, classes): use a classifier.")
    return logits


class _ReachedCut(Exception):
    """Ends a forward pass at the cut."""

    def __init__(self, output: Any):
        self.output = output


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _eval_mode_with_gradients(model: torch.nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode with gradients for all parameters, and restores it afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(True)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, want in wanted:
            parameter.requires_grad_(want)


def _leaf_tensors(output: torch.Tensor) -> set[torch.Tensor]:
    """The leaf tensors that a tensor was computed from."""
    leaves, seen, pending = set(), set(), [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        pending.extend(next_node for next_node, _ in node.next_functions)
    return leaves
