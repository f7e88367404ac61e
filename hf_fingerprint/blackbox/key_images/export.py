"""Exports a recipient's key images: the triggers assigned to it, each with its fingerprint embedded invisibly.

    export_key_images("org/model", "alice", vault, "alice_key_images")

The positions of the bits depend on the model secret and not on the copy key, so that one reading of an image is
compared with all recipients at once; see [`identify_key_image`]. The embedded mark has no effect on a copy's
predictions: copies are fitted to the plain trigger images, so the mark can't become the trigger.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from hf_fingerprint.blackbox.key_images.key_image import KeyImage, derive_fingerprint, make_key_image
from hf_fingerprint.blackbox.key_images.payload import DEFAULT_BITS, coded_bits
from hf_fingerprint.blackbox.querying.query import find_base_with_triggers
from hf_fingerprint.checkpoints import remove_on_failure, resolve_parent, sync
from hf_fingerprint.choices import did_you_mean
from hf_fingerprint.codes import check_alpha
from hf_fingerprint.errors import CodeError, FingerprintError, VaultError
from hf_fingerprint.keys import derive
from hf_fingerprint.progress import Progress, shows_progress, silent
from hf_fingerprint.tables import PrintableResult
from hf_fingerprint.vault import CopyRecord, Vault, check_outside_vaults
from hf_fingerprint.vault.private_files import write_private


INDEX, SUFFIX = "index.json", ".png"


@dataclass(frozen=True)
class KeyImageSet(PrintableResult):
    """The key images written for a recipient.

    Attributes:
        folder (`str`): their folder.
        base_id (`str`): the base of the trigger set.
        recipient, copy_id (`str`): the recipient whose fingerprint they carry, and its copy.
        bits (`int`): the length of the fingerprint.
        images (`int`): the number of key images.
        left_out (`int`): the number of trigger images without capacity for the fingerprint.
        psnr, ssim (`float`): the lowest PSNR, dB, and SSIM between a key image and its trigger image.
    """

    folder: str
    base_id: str
    recipient: str
    copy_id: str
    bits: int
    images: int
    left_out: int
    psnr: float
    ssim: float

    def to_dict(self) -> dict[str, str | int | float]:
        """The set as JSON types."""
        return asdict(self)

    def blocks(self) -> Iterator[str]:
        """The lines that show the set."""
        yield (
            f"{self.folder} has {self.images} key images of {self.recipient}, {self.bits} bits each; at least "
            f"{self.psnr:.1f} dB and SSIM {self.ssim:.3f} from the unmarked trigger images"
        )
        if self.left_out:
            few = "trigger images have too little capacity"
            yield f"{self.left_out} {few} for {self.bits} bits and are left out"


@shows_progress
def export_key_images(
    base: str | Path | None,
    recipient: str,
    vault: Vault | str | Path,
    out: str | Path,
    bits: int = DEFAULT_BITS,
    progress: Progress | None = None,
) -> KeyImageSet:
    """Writes a recipient's key images as PNG files into a new folder, with an `index.json` of their names, digests and
    similarity to the trigger images. Neither holds a key or a label.

    Args:
        base (`str`, `Path` or `None`): the base: its id in the vault, a path or a Hub id; `None` for the only one that
            has a trigger set.
        recipient (`str`): the recipient, or the id of one of its copies if it has several.
        vault ([`Vault`], `str` or `Path`): the vault; it must be unlocked.
        out (`str` or `Path`): a folder that doesn't exist yet, outside the vault.
        bits (`int`, *optional*, defaults to 304): the length of the fingerprint.
        progress (callable, *optional*): a [`Progress`].

    Raises:
        [`FingerprintError`]: if the key images can't be made or written. No folder is left then.
    """
    vault, out = vault if isinstance(vault, Vault) else Vault(vault), Path(out)
    record, trigger_set = find_base_with_triggers(vault, base)
    base_id, secret = record.base_id, record.secret
    coded_bits(bits)
    check_bits(bits, max(record.expected_recipients, len(vault.copies(base_id))), record.alpha)
    copy = _find_copy(vault, base_id, recipient)
    _check_output_folder(out)
    key, progress = vault.copy_key(copy), progress or silent
    _, (assigned,) = trigger_set.assigned_labels([key])
    images, listed, left_out = trigger_set.images(secret), [], 0
    with _atomic_folder(out) as partial:
        for done, (index, key_image) in enumerate(mark_triggers(images, assigned, secret, key, bits), 1):
            if key_image is None:
                left_out += 1
            else:
                listed.append(_write_png(partial / f"{index:03}{SUFFIX}", key_image))
            progress("marking", done, int(assigned.sum()))
        if not listed:
            no_capacity = f"None of the {left_out} triggers of {copy.recipient} has capacity for {bits} bits"
            raise FingerprintError(f"{no_capacity}: choose fewer bits.")
        described = {"base": base_id, "bits": bits, "left_out": left_out, "images": listed}
        write_private(partial / INDEX, json.dumps(described, indent=1).encode())
    psnr, ssim = (min(float(each[name]) for each in listed) for name in ("psnr", "ssim"))
    return KeyImageSet(str(out), base_id, copy.recipient, copy.copy_id, bits, len(listed), left_out, psnr, ssim)


def mark_triggers(
    images: np.ndarray, assigned: np.ndarray, secret: bytes, copy_key: bytes, bits: int = DEFAULT_BITS
) -> Iterator[tuple[int, KeyImage | None]]:
    """Makes a recipient's key images, one after another.

    Args:
        images (`np.ndarray` of shape `(n, height, width, 3)`): the base's trigger images, `uint8`; decoys may follow.
        assigned (`np.ndarray` of shape `(count,)`): which of them are assigned to the recipient, `bool`.
        secret, copy_key (`bytes`): the model secret and the recipient's copy key.
        bits (`int`, *optional*, defaults to 304): the length of the fingerprint.

    Yields:
        `(index, key_image)`: the trigger's index and its key image, or `None` if it has no capacity.
    """
    fingerprint, placement = derive_fingerprint(copy_key, bits), placement_key(secret)
    for index in np.flatnonzero(assigned).tolist():
        try:
            yield index, make_key_image(images[index], fingerprint, placement, index)
        except CodeError:
            yield index, None


def placement_key(secret: bytes) -> bytes:
    """The key of the bits' positions, the same for all recipients of a model secret."""
    return derive(secret, "key_images")


def log10_false_match(bits: int, copies: int) -> float:
    """Decimal logarithm of the probability that the payload read equals another copy's fingerprint: `copies *
    2^-bits`, at most 1. The payload depends on no fingerprint but its own, and the others are uniform."""
    return min(0.0, math.log10(max(copies, 1)) - bits * math.log10(2))


def check_bits(bits: int, copies: int, alpha: float) -> None:
    """Checks that `bits` are enough to keep the probability of naming an innocent at most alpha.

    Raises:
        [`CodeError`]: if they are too few, or alpha is above 0.05.
    """
    check_alpha(alpha)
    if log10_false_match(bits, copies) > math.log10(alpha):
        enough = 8 * math.ceil((math.log2(copies) - math.log2(alpha)) / 8)
        raise CodeError(f"{bits} bits are too few for {copies} copies at alpha {alpha:.0e}: choose {enough} or more.")


def _find_copy(vault: Vault, base_id: str, recipient: str) -> CopyRecord:
    copies = vault.copies(base_id, begun=False)
    found = [copy for copy in copies if copy.recipient == recipient]
    found = found or [copy for copy in copies if copy.copy_id == recipient]
    if not found:
        names = [copy.recipient for copy in copies]
        hint = did_you_mean(recipient, names, "run `hf-fingerprint recipients` to list the recipients")
        raise VaultError(f"{vault.folder} has no copy of base {base_id} for {recipient}{hint}")
    if len(found) > 1:
        ids = ", ".join(copy.copy_id for copy in found)
        raise VaultError(f"{recipient} has {len(found)} copies of base {base_id}: give one of the ids {ids}.")
    return found[0]


def _check_output_folder(out: Path) -> None:
    resolve_parent(out)
    check_outside_vaults(out)
    if out.exists() or out.is_symlink():
        raise FingerprintError(f"{out} already exists: name a new folder for the key images.")


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder next to `out`, renamed to it once the block succeeds, and removed otherwise."""
    partial = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    with remove_on_failure(partial):
        partial.mkdir(parents=True)
        yield partial
        sync(partial)
        partial.rename(out)
        sync(out.parent)


def _write_png(path: Path, key_image: KeyImage) -> dict[str, str | float]:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(key_image.image).save(file, "PNG")
    content = file.getvalue()
    write_private(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return {"file": path.name, "psnr": round(key_image.psnr, 3), "ssim": round(key_image.ssim, 5), "sha256": digest}
