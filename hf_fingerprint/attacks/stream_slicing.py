"""SliceGPT: deletes directions of a vision transformer's residual stream, each half of a block with its own basis."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

from hf_fingerprint.attacks.attack import Attack, Attacker, State, check_share
from hf_fingerprint.attacks.stream_layers import Segment, change_bases, fold_normalizations, stream_segments


if TYPE_CHECKING:
    import torch

IMAGES = 256  # from which the principal components are computed
SHORTCUTS = "attn_shortcut_Q", "mlp_shortcut_Q"


@dataclass(frozen=True)
class StreamSlicing(Attack):
    """Deletes the directions of the residual stream in which it varies least: SliceGPT.

    Normalizations are folded into the layers around them, and what is left of them divides by the root mean square.
    Each segment of the stream is rotated to its principal components on the attacker's images, of which the last are
    deleted. Skip connections get a matrix from one segment's basis to the next one's: `attn_shortcut_Q` and
    `mlp_shortcut_Q` of each block. All components are computed from the model before it is sliced.

    The result fits no class of timm; [`Attacker.model`] makes one that runs it.

    Args:
        share (`float`, *optional*, defaults to 0.2): the strength: the share of the stream's directions to delete, 0
            to 1; one is always left.
    """

    paper = "S. Ashkboos et al., SliceGPT, ICLR 2024, arXiv 2401.15024"
    strengths = (0.1, 0.2, 0.3)
    needs_attacker = True
    share: float = 0.2

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        check_share(self.share)
        attacker = self.require_attacker(attacker)
        segments = stream_segments(state, type(self).__name__)
        found = fold_normalizations(state, segments)
        dtypes = {name: tensor.dtype for name, tensor in state.items()}
        folded = {name: tensor.to(dtypes[name]) for name, tensor in found.items()}
        first = found[f"{segments[0].writer}.weight"]
        kept = max(1, len(first) - round(self.share * len(first)))
        bases = [basis[:, :kept].to(first.device) for basis in _principal_components(attacker, folded, segments)]
        change_bases(found, segments, bases)
        for number, (each, before, after) in enumerate(zip(segments, bases, bases[1:], strict=False)):
            block = each.norm.rpartition(".")[0]
            found[f"{block}.{SHORTCUTS[number % 2]}"] = before.T @ after
            dtypes[f"{block}.{SHORTCUTS[number % 2]}"] = dtypes[f"{each.reader}.weight"]
        gone = {f"{each.norm}.{kind}" for each in segments for kind in ("weight", "bias")}
        gone |= {name for name in found if name.endswith(".gamma")}
        return {name: tensor.to(dtypes[name]) for name, tensor in found.items() if name not in gone}


def _principal_components(attacker: Attacker, folded: State, segments: Sequence[Segment]) -> "list[torch.Tensor]":
    """Each segment's principal components `(channels, channels)` as columns, the largest first; `float64`."""
    import torch

    model = attacker.model(folded)
    powers: dict[str, torch.Tensor] = {}

    def hook(norm: str) -> "torch.utils.hooks.RemovableHandle":
        def record(module: object, inputs: "tuple[torch.Tensor, ...]") -> None:
            stream = inputs[0].flatten(0, -2).double()
            powers[norm] = powers.get(norm, 0) + stream.T @ stream

        return model.get_submodule(norm).register_forward_pre_hook(record)

    hooks = [hook(each.norm) for each in segments]
    with torch.no_grad():
        for batch in attacker.images[:IMAGES].split(attacker.batch):
            model(batch)
    for each in hooks:
        each.remove()
    return [torch.linalg.eigh(powers[each.norm])[1].flip(1) for each in segments]


def is_sliced(state: State) -> bool:
    """Whether a state dict is what [`StreamSlicing`] makes."""
    return any(name.endswith(SHORTCUTS) for name in state)


def fit_slices(model: "torch.nn.Module", state: State) -> "torch.nn.Module":
    """The model itself, with a stream that is sliced as in a state dict; unchanged if that isn't sliced."""
    import torch

    if not is_sliced(state):
        return model
    for name, part in list(model.named_modules()):
        if isinstance(part, torch.nn.LayerNorm) and f"{name}.weight" not in state:
            part.weight = part.bias = None
            part.forward = MethodType(_divide_by_root_mean_square, part)
        elif f"{name}.{SHORTCUTS[0]}" in state:
            part.ls1 = part.ls2 = torch.nn.Identity()
            part.forward = MethodType(_run_sliced_block, part)
    for name, values in state.items():
        path, _, kind = name.rpartition(".")
        part = model.get_submodule(path)
        if kind in SHORTCUTS or getattr(part, kind).shape != values.shape:
            setattr(part, kind, torch.nn.Parameter(torch.empty(values.shape)))
    return model


def _divide_by_root_mean_square(norm: Any, stream: "torch.Tensor") -> "torch.Tensor":
    """A layer normalization of a stream of mean 0, of which the other directions may be gone."""
    power: torch.Tensor = stream.square().sum(-1, keepdim=True) / norm.normalized_shape[-1]
    return stream * (power + norm.eps).rsqrt()


def _run_sliced_block(block: Any, stream: "torch.Tensor") -> "torch.Tensor":
    stream = stream @ block.attn_shortcut_Q + block.attn(block.norm1(stream))
    output: torch.Tensor = stream @ block.mlp_shortcut_Q + block.mlp(block.norm2(stream))
    return output
