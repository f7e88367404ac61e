"""A throwaway vault with copies of a model, and traces of suspects made from them.

Suspects are traced among the copies' recipients and 10,000 innocents. Each gets the bound that it would have among the
expected number of recipients (1,000 by default), so the verdicts are those of a real trace.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_fingerprint.attacks.attack import fit_model
from hf_fingerprint.attacks.stream_slicing import is_sliced
from hf_fingerprint.checkpoints import NO_OPTIONS, Checkpoint, HubOptions, TensorReader, open_checkpoint
from hf_fingerprint.codes import decode_readings
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import BuildError, FingerprintError
from hf_fingerprint.evaluation.layer_evidence import evidence_by_layer
from hf_fingerprint.evaluation.throwaway import throwaway_vault
from hf_fingerprint.extraction import Extraction, to_base_names
from hf_fingerprint.extraction.aligning import AlignedSuspect, match_and_align
from hf_fingerprint.extraction.alignment.suspect_model import load_into_base_model
from hf_fingerprint.extraction.extract import extract_aligned
from hf_fingerprint.extraction.extraction_sums import PLAIN, WHITENED
from hf_fingerprint.extraction.placing import place_blocks
from hf_fingerprint.issuing import Issuer
from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.models import BuiltModel, build_model, map_parameter_names
from hf_fingerprint.progress import Progress, silent
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]

INNOCENTS = 10_000
BINS = (-8.0, 0.25, 80)  # of innocents' scores: first lower edge, width, count


@dataclass(frozen=True)
class Verdict:
    """The result of tracing a suspect whose colluders are known.

    Attributes:
        scores (`tuple[float, ...]`): the colluders' scores, in standard deviations of an innocent's.
        log10_bounds (`tuple[float, ...]`): decimal logarithms of the colluders' bounds on a false accusation.
        caught (`tuple[bool, ...]`): which colluders are accused.
        threshold (`float`): the lowest score that accuses in the first round.
        innocents (`int`): how many innocents were scored.
        innocents_accused (`int`): how many innocents were accused.
        highest_innocent (`float`): the highest score of an innocent.
        histogram (`tuple[int, ...]`): of innocents' scores over `BINS`; the first and last bins are open.
        unaligned (`tuple[int, float]`): innocents accused and their highest score without alignment.
        aligned (`int`): how many carriers were aligned.
        weights_read (`int`): how many weights were compared.
        cosine, drift (`float`): see [`Lineage`].
        layers (`tuple[float, ...]`): the first colluder's score in each carrier alone.
        plain_scores (`tuple[float, ...]`): the colluders' scores by the plain reading alone.
        plain_caught (`tuple[bool, ...]`): which colluders are accused by the plain reading alone.
        blind_scores (`tuple[float, ...]`): the colluders' scores without the ancestor.
        blind_caught (`tuple[bool, ...]`): which colluders are accused without the ancestor.
    """

    scores: tuple[float, ...]
    log10_bounds: tuple[float, ...]
    caught: tuple[bool, ...]
    threshold: float
    innocents: int
    innocents_accused: int
    highest_innocent: float
    histogram: tuple[int, ...]
    unaligned: tuple[int, float]
    aligned: int
    weights_read: int
    cosine: float
    drift: float
    layers: tuple[float, ...]
    plain_scores: tuple[float, ...] = ()
    plain_caught: tuple[bool, ...] = ()
    blind_scores: tuple[float, ...] = ()
    blind_caught: tuple[bool, ...] = ()


class Testbed:
    """A registered model with issued copies, and traces of suspects. Use it as a context manager.

    Args:
        model (`str` or `Path`): a folder or Hub id of a model that timm or transformers builds.
        out (`Path`): the folder for the vault and the copies. They are reused if they exist.
        recipient_count (`int`): the number of copies.
        config ([`FingerprintConfig`], *optional*): the registration's configuration.
        innocents (`int`, *optional*, defaults to 10,000): how many recipients without a copy to score.
        progress (callable, *optional*): a [`Progress`].
        device (`str` or `torch.device`, *optional*): where models run. Defaults to the CPU.
        options ([`HubOptions`], *optional*): which files of the model, and how to reach them.

    Attributes:
        ancestor ([`TensorReader`] or `None`): the open ancestor under the base's names, if traces may use it.

    Raises:
        [`FingerprintError`]: if the model can't be marked or can't be run.
    """

    def __init__(
        self,
        model: str | Path,
        out: Path,
        recipient_count: int,
        config: FingerprintConfig | None = None,
        innocents: int = INNOCENTS,
        progress: Progress | None = None,
        *,
        device: "str | torch.device | None" = None,
        options: HubOptions = NO_OPTIONS,
    ):
        self.config, self._device = config or FingerprintConfig(), device
        self.ancestor: TensorReader | None = None
        progress = progress or silent
        self._open = ExitStack()
        with ExitStack() as opening:
            self._original: Checkpoint = opening.enter_context(open_checkpoint(model, options=options))
            self.built = build_or_raise(self._original, str(model))
            vault = throwaway_vault(out / f"vault-{_config_digest(self.config)}")
            opened = Issuer(model, vault, self.config, progress, device=device, **options.keywords)
            issuer = opening.enter_context(opened)
            self.base: Base = issuer.base
            names = [f"holder-{i:02}" for i in range(recipient_count)]
            progress(f"issuing {recipient_count} copies", 0, None)
            copies = issuer.issue_all(names, out / "copies" / self.base.base_id, progress)
            self._folders = [copy.path for copy in copies]
            by_name = {copy.recipient: copy for copy in vault.copies(self.base.base_id)}
            self._keys = vault.copy_keys([by_name[name] for name in names])
            self._open = opening.pop_all()
        self._codebook = self.base.codebook()
        self._codewords = self._codebook.packed(self._keys)
        rng = np.random.default_rng(0)
        self._innocents = [rng.bytes(SECRET_BYTES) for _ in range(innocents)]

    def __enter__(self) -> "Testbed":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @property
    def innocents(self) -> int:
        """The number of recipients without a copy."""
        return len(self._innocents)

    def build(self) -> "torch.nn.Module":
        """The base's model in evaluation mode."""
        from copy import deepcopy

        return deepcopy(self.built.module)

    def parameters(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The model's parameters: the name of each in the base's files, and its shape."""
        file_names = map_parameter_names(self.built.module, self._original)
        return {n: (file_names.get(n, n), tuple(p.shape)) for n, p in self.built.module.named_parameters()}

    def model_of(self, state: "State") -> "torch.nn.Module | None":
        """The model with these weights in evaluation mode, or `None` if they do not fit it. Layers may have other
        widths, normalizations may be folded, names may be those of timm or transformers, blocks may be dropped, or
        inserted as identities, and the residual stream may be sliced."""
        if is_sliced(state):
            return fit_model(self.build(), state)
        with open_checkpoint(state, suspect=True) as suspect:
            paired, _ = place_blocks(self.base, self._original, suspect, to_base_names(self.base, suspect))
            found = load_into_base_model(self.built, {}, suspect) if paired is suspect else None
            if found is None:
                names = map_parameter_names(self.built.module, self._original)
                found = load_into_base_model(self.built, names, paired)
            return None if found is None else found.module

    def base_state(self) -> "dict[str, torch.Tensor]":
        """The base's state dict."""
        return {name: tensor.clone() for name, tensor in self.built.module.state_dict().items()}

    def copy(self, recipient: int) -> "dict[str, torch.Tensor]":
        """The state dict of one recipient's copy, by the model's names, in float32."""
        with open_checkpoint(self._folders[recipient]) as issued:
            return build_or_raise(issued, str(self._folders[recipient])).module.state_dict()

    def trace_suspect(self, state: "State", colluders: Sequence[int] = (0,)) -> Verdict:
        """Traces a suspect made from the copies of `colluders`, recipients' indices. All others count as innocent."""
        with open_checkpoint(state, suspect=True) as suspect:
            found = match_and_align(self.base, self._original, suspect, device=self._device)
            extraction = self._extract(found)
            fields = unaligned_fields = self._decode(extraction, colluders)
            if extraction.aligned:
                unaligned = self._extract(AlignedSuspect.as_placed(found.placed))
                unaligned_fields = self._decode(unaligned, colluders)
            codeword = self._codewords[colluders[0] if colluders else 0]
            layers = evidence_by_layer(self.base, self._original, found, codeword, self.ancestor)
        return Verdict(
            **fields,
            unaligned=(unaligned_fields["innocents_accused"], unaligned_fields["highest_innocent"]),
            aligned=extraction.aligned,
            weights_read=extraction.weights_read,
            cosine=extraction.lineage.cosine,
            drift=extraction.lineage.drift,
            layers=layers,
            **self._decode_fewer(extraction, colluders),
        )

    def _extract(self, found: AlignedSuspect) -> Extraction:
        return extract_aligned(self.base, self._original, found, ancestor=self.ancestor)

    def _decode_fewer(self, extraction: Extraction, colluders: Sequence[int]) -> dict[str, Any]:
        """The colluders' scores by the plain reading alone, and without the ancestor."""
        fields: dict[str, Any] = {}
        for field, names in (("plain", (PLAIN,)), ("blind", (PLAIN, WHITENED))):
            readings = [reading for name, reading in extraction.readings.items() if name in names]
            keys, count = [self._keys[i] for i in colluders], self.base.expected_recipients
            found = decode_readings(self._codebook, keys, readings, self.base.alpha, recipients=count)
            fields[f"{field}_scores"] = tuple(float(score) for score in found.scores)
            fields[f"{field}_caught"] = tuple(i in found.accused for i in range(len(keys)))
        return fields

    def _decode(self, extraction: Extraction, colluders: Sequence[int]) -> dict[str, Any]:
        keys = [*self._keys, *self._innocents]
        extra = math.log(len(keys) / self.base.expected_recipients)  # bounds as among the expected recipients
        alpha = math.exp(math.log(self.base.alpha) + extra)
        found = decode_readings(self._codebook, keys, list(extraction.readings.values()), alpha)
        others = np.setdiff1d(np.arange(len(keys)), colluders)
        accused, scores = set(found.accused), found.scores[others]
        first, width, count = BINS
        bins = np.clip(np.floor((scores - first) / width), 0, count - 1).astype(int)
        return {
            "scores": tuple(float(found.scores[i]) for i in colluders),
            "log10_bounds": tuple(_log10(found.log_bounds[i], extra) for i in colluders),
            "caught": tuple(i in accused for i in colluders),
            "threshold": found.threshold,
            "innocents": len(others),
            "innocents_accused": len(accused - set(colluders)),
            "highest_innocent": float(scores.max()),
            "histogram": tuple(int(n) for n in np.bincount(bins, minlength=count)),
        }


def build_or_raise(checkpoint: Checkpoint, name: str) -> BuiltModel:
    try:
        return build_model(checkpoint)
    except BuildError as error:
        raise FingerprintError(f"{name} can't be run, which attacks need: {error}") from error


def _log10(bound: float, extra: float) -> float:
    """The decimal logarithm of a bound, corrected for the `extra` log of recipients."""
    return min(0.0, float(bound - extra) / math.log(10)) if bound < 0 else 0.0


def _config_digest(config: FingerprintConfig) -> str:
    fields = json.dumps(asdict(config), sort_keys=True, default=str)
    return hashlib.sha256(fields.encode()).hexdigest()[:12]
