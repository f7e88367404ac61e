"""Changes of a model's depth: blocks dropped, or inserted as identities, and the rest numbered anew."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_fingerprint.attacks.attack import Attack, Attacker, State, check_share
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.extraction.blocks import Block, block_tensors


if TYPE_CHECKING:
    import torch

IMAGES = 64  # by which a block's influence is measured
_OUTPUTS = ("attn.proj.", "mlp.fc2.")
_LAST_NORMS = ("bn3.", "bn2.")


@dataclass(frozen=True)
class BlockRemoval(Attack):
    """Drops the blocks that change the residual stream least, and numbers the others anew.

    A block's influence is one minus the cosine of its input and its output, on the attacker's images.

    Args:
        share (`float`): the strength: the share of blocks to drop, 0 to 1. The first block of a stage stays, and one
            whose input has another shape than its output.
    """

    paper = "X. Men et al., ShortGPT: layers in large language models are more redundant, arXiv 2403.03853"
    strengths = (0.1, 0.25, 0.5)
    needs_attacker = True
    share: float = 0.25

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        check_share(self.share)
        attacker = self.require_attacker(attacker)
        stacks = _stacks(state)
        influence = _influence(attacker, state, [block for blocks in stacks.values() for block in blocks[1:]])
        count = min(round(self.share * sum(map(len, stacks.values()))), len(influence))
        dropped = set(sorted(influence, key=influence.__getitem__)[:count])
        return _rebuild(state, {s: [b for b in blocks if b not in dropped] for s, blocks in stacks.items()})


@dataclass(frozen=True)
class BlockInsertion(Attack):
    """Inserts blocks that pass their input on, and numbers the others anew.

    Each is a copy of the block before it whose output layers are 0. Blocks that change the width of the stream, such
    as the first of a stage, are not copied.

    Args:
        share (`float`, *optional*, defaults to 0.25): the strength: blocks to insert, as a share of the existing ones.
        seed (`int`, *optional*, defaults to 0): seed of their places.
    """

    paper = "C. Wu et al., LLaMA Pro: progressive LLaMA with block expansion, arXiv 2401.02415, section 3.2"
    strengths = (0.1, 0.25, 1.0)
    share: float = 0.25
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        check_share(self.share)
        stacks = _stacks(state)
        blocks = block_tensors({name: tuple(tensor.shape) for name, tensor in state.items()})
        usable = [b for each in stacks.values() for b in each if _output_layers(blocks[b]) and b != each[0]]
        generator = torch.Generator().manual_seed(self.seed)
        count = min(round(self.share * sum(map(len, stacks.values()))), len(usable))
        repeated = {usable[i] for i in torch.randperm(len(usable), generator=generator)[:count].tolist()}
        doubled = {s: [b for each in stack for b in [each] * (1 + (each in repeated))] for s, stack in stacks.items()}
        found = _rebuild(state, doubled)
        for stack, order in doubled.items():
            for index, block in enumerate(order):
                if index and order[index - 1] == block:
                    for rest in _output_layers(blocks[block]):
                        found[f"{stack}.{index}.{rest}"].zero_()
        return found


def fit_depth(model: "torch.nn.Module", state: State) -> "torch.nn.Module":
    """The model itself, with as many blocks in each stack as a state dict has."""
    own = block_tensors({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    for stack in {block.stack for block in own}:
        indices = {name.removeprefix(f"{stack}.").partition(".")[0] for name in state if name.startswith(f"{stack}.")}
        count = sum(index.isdecimal() for index in indices)
        parent, _, name = stack.rpartition(".")
        blocks: Any = model.get_submodule(stack)
        if count in (0, len(blocks)):
            continue
        kept = blocks[:count]
        while len(kept) < count:
            kept.append(deepcopy(blocks[-1]))
        setattr(model.get_submodule(parent), name, kept)
    return model


def _stacks(state: State) -> dict[str, list[Block]]:
    """The blocks of each stack, in order."""
    stacks: dict[str, list[Block]] = defaultdict(list)
    for block in sorted(block_tensors({name: tuple(tensor.shape) for name, tensor in state.items()})):
        stacks[block.stack].append(block)
    found = {stack: blocks for stack, blocks in stacks.items() if [b.number for b in blocks] == [*range(len(blocks))]}
    if not found:
        raise FingerprintError("The model has no stack of blocks with numbers: choose another attack.")
    return found


def _output_layers(tensors: dict[str, str]) -> list[str]:
    """The tensors of a block that make it an identity if they are 0, by the rest of their names."""
    last = next((norm for norm in _LAST_NORMS if f"{norm}weight" in tensors), None)
    prefixes = _OUTPUTS if all(f"{each}weight" in tensors for each in _OUTPUTS) else (last,) if last else ()
    return [rest for rest in tensors for prefix in prefixes if rest in (f"{prefix}weight", f"{prefix}bias")]


def _rebuild(state: State, stacks: dict[str, list[Block]]) -> "dict[str, torch.Tensor]":
    """The state with these blocks in each stack, in this order."""
    blocks = block_tensors({name: tuple(tensor.shape) for name, tensor in state.items()})
    moved = {name for block, tensors in blocks.items() if block.stack in stacks for name in tensors.values()}
    found = {name: tensor.clone() for name, tensor in state.items() if name not in moved}
    for stack, order in stacks.items():
        for index, block in enumerate(order):
            found |= {f"{stack}.{index}.{rest}": state[name].clone() for rest, name in blocks[block].items()}
    return found


def _influence(attacker: Attacker, state: State, blocks: Iterable[Block]) -> dict[Block, float]:
    """How much each block changes its input, of those that keep its shape."""
    import torch

    model, found = attacker.model(state), {}

    def measure(block: Block) -> Any:
        def hook(module: Any, inputs: Sequence[Any], output: Any) -> None:
            if isinstance(output, torch.Tensor) and inputs and inputs[0].shape == output.shape:
                cosine = torch.nn.functional.cosine_similarity(inputs[0].flatten(1), output.flatten(1))
                found[block] = 1 - float(cosine.mean())

        return model.get_submodule(f"{block.stack}.{block.number}").register_forward_hook(hook)

    hooks = [measure(block) for block in blocks]
    with torch.no_grad():
        model(attacker.images[:IMAGES])
    for hook in hooks:
        hook.remove()
    if not found:
        raise FingerprintError("The model has no block that can be dropped: choose another attack.")
    return found
