"""A throwaway vault with copies of a model, and the means to judge suspects as a trace would.

A suspect is judged among the holders of the copies and 10,000 innocents, each at the bound that they would have among
the planned number of recipients (1,000 by default), so an evaluation's verdicts are those of a real trace.
"""

import hashlib
import json
import math
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, open_checkpoint
from hf_fingerprint.codes import decode
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import BuildError, FingerprintError
from hf_fingerprint.evaluation.layer_evidence import evidence_by_layer
from hf_fingerprint.extraction import Extraction, extract, to_base_names
from hf_fingerprint.extraction.alignment.suspect_model import load_into_base_model
from hf_fingerprint.issuing import Issuer
from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.models import BuiltModel, build_model, map_parameter_names
from hf_fingerprint.progress import Progress, silent
from hf_fingerprint.vault import Base, Vault, find_passphrase
from hf_fingerprint.vault.database import DATABASE
from hf_fingerprint.vault.private_files import write_private
from hf_fingerprint.vault.storage import translate_disk_errors


if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]

INNOCENTS = 10_000
BINS = (-8.0, 0.25, 80)  # of innocents' scores: the first one's lower edge, the width, how many
_PASSPHRASE = "passphrase"


@dataclass(frozen=True)
class Verdict:
    """What a trace says of a suspect whose makers are known.

    Attributes:
        scores (`tuple[float, ...]`): the guilty's, in standard deviations of an innocent's.
        log10_bounds (`tuple[float, ...]`): decimal logarithms of the bounds on a false accusation, for each.
        caught (`tuple[bool, ...]`): which of them are accused.
        threshold (`float`): the score from which on the first round accuses.
        innocents (`int`): how many innocents were scored.
        innocents_accused (`int`): how many of them were accused.
        highest_innocent (`float`): the highest score among them.
        histogram (`tuple[int, ...]`): of their scores, over `BINS`, the ends open.
        unaligned (`tuple[int, float]`): innocents accused and the highest of their scores if channels stay in the
            suspect's order.
        aligned (`int`): carriers that were put in order.
        weights_read (`int`): weights compared.
        cosine, drift (`float`): of the suspect's weights and the base's; see [`Lineage`].
        layers (`tuple[float, ...]`): the first guilty's score by each carrier alone.
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


class Testbed:
    """A model, copies of it, and a judge.

    Args:
        model (`str` or `Path`): a folder or a Hub id, which timm or transformers builds.
        out (`Path`): where to keep the vault and the copies; the same scene is found there again.
        recipient_count (`int`): how many copies there are.
        config ([`FingerprintConfig`], *optional*): of the registration.
        innocents (`int`, *optional*, defaults to 10,000): how many recipients without a copy are scored too.
        progress (callable, *optional*): a [`Progress`].

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
    ):
        self.config = config or FingerprintConfig()
        progress = progress or silent
        self._open = ExitStack()
        self._out = out
        with ExitStack() as opening:
            self._original: Checkpoint = opening.enter_context(open_checkpoint(model))
            self.built = _build_or_raise(self._original, str(model))
            vault = throwaway_vault(out / f"vault-{_config_digest(self.config)}")
            issuer = opening.enter_context(Issuer(model, vault, self.config, progress))
            self.base: Base = issuer.base
            names = [f"holder-{i:02}" for i in range(recipient_count)]

            self._folders = [
                copy.path for copy in issuer.issue_all(names, out / "copies" / self.base.base_id, progress)
            ]
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
        """How many recipients without a copy are scored."""
        return len(self._innocents)

    def build(self) -> "torch.nn.Module":
        """The model, with the base's weights, in evaluation mode."""
        from copy import deepcopy

        return deepcopy(self.built.module)

    def model_of(self, state: "State") -> "torch.nn.Module | None":
        """The model with these weights, in evaluation mode; layers may have other widths, normalisations may be folded
        away, names may be the other library's. `None` if that is not what the weights are."""
        with self._open_as_file(state) as suspect:
            found = load_into_base_model(self.built, {}, suspect)
            if found is None:
                names = map_parameter_names(self.built.module, self._original)
                found = load_into_base_model(self.built, names, to_base_names(self.base, suspect))
            return found

    @contextmanager
    def _open_as_file(self, state: "State") -> Iterator[Checkpoint]:
        """A suspect on the disk, for as long as it is looked at."""
        from safetensors.torch import save

        with ExitStack() as kept:
            with translate_disk_errors(f"A suspect can't be written in {self._out}", self._out):
                scratch = kept.enter_context(TemporaryDirectory(dir=self._out))
                file = Path(scratch) / "suspect.safetensors"
                file.write_bytes(
                    save({name: each.detach().cpu().clone().contiguous() for name, each in state.items()})
                )
            with open_checkpoint(file) as suspect:
                yield suspect

    def base_state(self) -> "dict[str, torch.Tensor]":
        """The base's weights."""
        return {name: tensor.clone() for name, tensor in self.built.module.state_dict().items()}

    def copy(self, recipient: int) -> "dict[str, torch.Tensor]":
        """The weights of one holder's copy, as the model names them, in single precision."""
        with open_checkpoint(self._folders[recipient]) as issued:
            return _build_or_raise(issued, str(self._folders[recipient])).module.state_dict()

    def trace_suspect(self, state: "State", colluders: Sequence[int] = (0,)) -> Verdict:
        """Traces a suspect.

        Args:
            state (mapping of `str` to `torch.Tensor`): its weights.
            colluders (sequence of `int`): the holders it was made from; nobody else is guilty.
        """
        with self._open_as_file(state) as suspect:
            extraction = extract(self.base, self._original, suspect)
            fields = self._decode(extraction, colluders)
            unaligned_fields = fields
            if extraction.aligned:
                unaligned_fields = self._decode(extract(self.base, self._original, suspect, aligned=False), colluders)
            codeword = self._codewords[colluders[0] if colluders else 0]
            layers = evidence_by_layer(self.base, self._original, suspect, codeword, bool(extraction.aligned))
        return Verdict(
            **fields,
            unaligned=(unaligned_fields["innocents_accused"], unaligned_fields["highest_innocent"]),
            aligned=extraction.aligned,
            weights_read=extraction.weights_read,
            cosine=extraction.lineage.cosine,
            drift=extraction.lineage.drift,
            layers=layers,
        )

    def _decode(self, extraction: Extraction, colluders: Sequence[int]) -> dict[str, Any]:
        keys = [*self._keys, *self._innocents]
        extra = math.log(len(keys) / self.base.expected_recipients)  # as if there were so many recipients alone
        alpha = math.exp(math.log(self.base.alpha) + extra)
        found = decode(self._codebook, keys, extraction.values, extraction.mass, alpha)
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


def _build_or_raise(checkpoint: Checkpoint, name: str) -> BuiltModel:
    try:
        return build_model(checkpoint)
    except BuildError as error:
        raise FingerprintError(f"{name} can't be run here, and attacks need that: {error}") from error


def _log10(bound: float, extra: float) -> float:
    """A bound among so many more recipients, as it is without them."""
    return min(0.0, float(bound - extra) / math.log(10)) if bound < 0 else 0.0


def _config_digest(config: FingerprintConfig) -> str:
    fields = json.dumps(asdict(config), sort_keys=True, default=str)
    return hashlib.sha256(fields.encode()).hexdigest()[:12]


def throwaway_vault(folder: Path) -> Vault:
    """The throwaway vault, unlocked. Its random passphrase lies beside it: it guards nothing that leaves the
    folder."""
    file = folder / _PASSPHRASE
    if not (folder / DATABASE).exists():
        shutil.rmtree(folder, ignore_errors=True)  # perhaps half made
        passphrase = secrets.token_hex(32)
        with translate_disk_errors(f"{file} can't be written", folder.parent):
            folder.mkdir(parents=True, mode=0o700)
            write_private(file, passphrase.encode() + b"\n")
        Vault.create(folder, passphrase)
    vault = Vault(folder)
    vault.unlock(find_passphrase(file))
    return vault
