"""The readers to fuzz: for each a valid input, a mutation and the function that reads it."""

import gzip
import json
import lzma
import secrets
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save, save_file

from examples.benchmarks import fuzz_inputs as mutations
from examples.benchmarks.fuzz_forms import READERS, form_target, forms_of
from hf_fingerprint.blackbox import Labels, parse_response
from hf_fingerprint.blackbox.client.class_names import read_labels
from hf_fingerprint.blackbox.client.remote import _parse_body
from hf_fingerprint.blackbox.querying.proof import check_proof
from hf_fingerprint.blackbox.querying.transcript import read_transcript
from hf_fingerprint.blackbox.trigger_set.triggers import GRID, TriggerSet
from hf_fingerprint.checkpoints import digest_tensors, find_weight_sets, list_contents, open_checkpoint, resolve
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.hub.card import make_card
from hf_fingerprint.hub.variants import read_assignments
from hf_fingerprint.keys import commitment
from hf_fingerprint.models import build_model, open_image
from hf_fingerprint.models.processors import read_processor
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault.issuers import open_issuer_key
from hf_fingerprint.vault.packing import open_pack, take_snapshot
from hf_fingerprint.vault.sealing import AgeIdentity, encrypt, new_identity, open_identity


TARGETS = {  # reader: its share of the inputs
    "safetensors": 14,
    "index": 8,
    "pickle": 8,
    "config": 8,
    "model": 2,
    "preprocessor": 4,
    "picture": 14,
    "proof": 6,
    "transcript": 6,
    "pack": 5,
    "vault": 5,
    "trigger_set": 5,
    "identity": 1,
    "issuer": 2,
    "recipients": 4,
    "labels": 4,
    "reply": 6,
    "card": 3,
    "archive": 4,
}
TARGETS |= {reader: 5 for reader, form in READERS.items() if forms_of(form)}
CONFIG = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
    "id2label": {str(i): f"class {i}" for i in range(10)},
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 16, "width": 16},
    "do_resize": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
}
CARD = """---
license: mit
tags: [vision, timm]
datasets:
- org/data
model-index:
- name: base
  results: [{task: {type: image-classification}, dataset: {name: d, type: d}, metrics: [{type: accuracy, value: 0.9}]}]
---
# A model

![confusion](confusion.png) <img src="curve.png"> [shown]: picture.png
"""
Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name (`str`): the name of the reader.
        samples (sequence of `bytes`): valid inputs.
        mutate (callable): mutates one.
        read (callable): reads an input.
        bombs (sequence of callables): make inputs that expand to far more than their size.
    """

    name: str
    samples: Sequence[bytes]
    mutate: mutations.Mutate
    read: Read
    bombs: Sequence[Callable[[], bytes]] = ()
    warm: bytes = b""

    @property
    def valid(self) -> bytes:
        """A valid input."""
        return self.warm or self.samples[0]


def targets_in(folder: Path, names: Iterable[str]) -> list[Target]:
    """Returns the readers of these names; they work in a folder."""
    found = []
    for name in names:
        place = folder / name
        place.mkdir()
        make = globals().get(f"_{name}")
        samples, mutate, read, *bombs = form_target(name, place) if make is None else make(place)
        found.append(Target(name, samples, mutate, read, *bombs))
    return found


def arrays() -> dict[str, np.ndarray]:
    """Returns the weights of a small model."""
    rng = np.random.default_rng(0)
    shapes = {f"blocks.{i}.{kind}.weight": (32, 32) for i in range(3) for kind in ("fc1", "fc2")}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _all_of(path: Path) -> object:
    """Reads every tensor of a suspect, then the same file as a base."""
    with open_checkpoint(path, suspect=True) as suspect:
        digests = digest_tensors(suspect)
    with open_checkpoint(path) as base:
        return digests, len(base.tensors)


def _in_file(path: Path, read: Callable[[Path], object]) -> Read:
    def written(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return written


def _text(value: Any, units: int = 1) -> Callable[[], bytes]:
    """Returns a function that makes a JSON text of this many repetitions."""
    return lambda: b"[" + b",".join([json.dumps(value).encode()] * units) + b"]"


def _safetensors(folder: Path) -> Any:
    half = {name: array.astype(np.float16) for name, array in arrays().items()}
    entry = '"%07d":{"dtype":"U8","shape":[],"data_offsets":[%d,%d]}'

    def many() -> bytes:
        header = ("{" + ",".join(entry % (i, i, i + 1) for i in range(240_000)) + "}").encode()
        return len(header).to_bytes(8, "little") + header + bytes(240_000)

    bombs = [
        lambda: mutations.header_bomb(99_000_000),
        lambda: mutations.header_bomb(15_900_000),
        lambda: mutations.header_bomb(15_900_000, b"[],"),
        lambda: mutations.header_bomb(3_900_000),
        many,
    ]
    read = _in_file(folder / "model.safetensors", _all_of)
    return [save(arrays()), save(half, {"format": "pt"})], mutations.of_safetensors, read, bombs


def _index(folder: Path) -> Any:
    parts = list(arrays().items())
    for number in range(2):
        save_file(dict(parts[number::2]), folder / f"model-{number}.safetensors")
    weight_map = {name: f"model-{i % 2}.safetensors" for i, (name, _) in enumerate(parts)}
    path = folder / "model.safetensors.index.json"

    def read(path: Path) -> object:
        sets = find_weight_sets(folder)
        for source in sets.sets:
            open_checkpoint(source, suspect=True).close()
        list_contents(resolve(folder))
        return _all_of(folder)

    names = {f"{i}": f"model-{i}.safetensors" for i in range(300_000)}
    bombs = [
        _text([[]], 1_000_000),
        lambda: json.dumps({"weight_map": names}).encode(),
        lambda: b'{"weight_map": {"a": "' + b"x.bin.1" * 1_000_000 + b'"}}',
        lambda: b"[" * 9_000_000,
    ]
    return (
        [json.dumps({"metadata": {}, "weight_map": weight_map}).encode()],
        mutations.of_json,
        _in_file(path, read),
        bombs,
    )


def _pickle(folder: Path) -> Any:
    import torch

    samples = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        file = BytesIO()
        torch.save({"state_dict": {name: torch.from_numpy(each) for name, each in arrays().items()}}, file, **options)
        samples.append(file.getvalue())
    return samples, mutations.of_bytes, _in_file(folder / "pytorch_model.bin", _all_of)


def _archive(folder: Path) -> Any:
    model, samples = save(arrays()), []
    for mode in ("w", "w:gz", "w:xz"):
        file = BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as packed:  # type: ignore[call-overload]
            info = tarfile.TarInfo("a/model.safetensors")
            info.size = len(model)
            packed.addfile(info, BytesIO(model))
        samples.append(file.getvalue())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = BytesIO()
        with zipfile.ZipFile(file, "w", method) as zipped:
            zipped.writestr("assets/model.safetensors", model)
            zipped.writestr("inner.zip", samples[0])
        samples.append(file.getvalue())

    def read(path: Path) -> object:
        found = find_weight_sets(path)
        for source in found.sets:
            with open_checkpoint(source, suspect=True) as opened:
                digest_tensors(opened)
        return found

    bombs = [lambda: gzip.compress(bytes(1 << 30), 1), lambda: lzma.compress(bytes(1 << 28), preset=0)]
    return samples, mutations.of_bytes, _in_file(folder / "app.apk", read), bombs


def _config(folder: Path) -> Any:
    save_file(arrays(), folder / "model.safetensors")
    source = resolve(folder)
    read = _in_file(folder / "config.json", lambda path: list_contents(source))
    bombs = [_text([], 5_000_000), _text({"a": 0}, 1_000_000), lambda: b"[" * 15_000_000, lambda: b"1" * 15_000_000]
    return [json.dumps(CONFIG).encode()], mutations.of_json, read, bombs


def _model(folder: Path) -> Any:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    settings = {name: value for name, value in CONFIG.items() if name != "id2label"}
    ViTForImageClassification(ViTConfig(**settings, num_labels=10)).save_pretrained(folder)

    def read(path: Path) -> object:
        with open_checkpoint(folder) as opened:
            return build_model(opened)

    bombs = [lambda: json.dumps(CONFIG | {"id2label": {str(i): str(i) for i in range(400_000)}}).encode()]
    return [json.dumps(CONFIG).encode()], mutations.of_json, _in_file(folder / "config.json", read), bombs


def _preprocessor(folder: Path) -> Any:
    read = _in_file(folder / "preprocessor_config.json", lambda path: read_processor(folder, "vit"))
    return [json.dumps(PROCESSOR).encode()], mutations.of_json, read, [_text([], 5_000_000)]


def _picture(folder: Path) -> Any:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    samples = []
    for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"):
        file = BytesIO()
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(pixels).save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
        samples.append(file.getvalue())
    for mode in ("P", "LA", "I;16", "CMYK", "1"):
        file = BytesIO()
        Image.fromarray(pixels).convert(mode if mode != "I;16" else "I").convert(mode).save(file, "TIFF")
        samples.append(file.getvalue())

    def read(path: Path) -> object:
        return np.asarray(open_image(path, apply_orientation=True)).shape, open_image(path, "L").size

    bombs = [
        lambda: mutations.png(13_300, 13_300),
        lambda: mutations.png(7_000, 7_000),
        lambda: mutations.png(7_000, 7_000, 16),
        lambda: mutations.png(1, 40_000_000),
        lambda: samples[1][:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0\0" * 100_000 + b"\xff\xd9",
    ]
    return samples, mutations.of_bytes, _in_file(folder / "picture", read), bombs


def make_proof(accused: int, triggers: int, responses: int) -> bytes:
    """Returns a valid proof."""
    heading = {"suspect": "s", "base": "b", "digest": "0" * 64, "questions": triggers, "decoys": 2, "classes": 10}
    heading |= {"alpha": 1e-6, "share": 0.5, "recipients": 1_000_000}
    opened = []
    for i in range(accused):
        key, content_hash = secrets.token_bytes(32), "0" * 64
        commitment_hex = commitment(key, f"r{i}", content_hash)
        opened.append(
            {"recipient": f"r{i}", "content_hash": content_hash, "commitment": commitment_hex, "copy_key": key.hex()}
        )
    rows = [[trigger, trigger % 10] for trigger in range(responses)]
    return json.dumps({"format": 1, "heading": heading, "answers": rows, "accused": opened}).encode()


def _proof(folder: Path) -> Any:
    bombs = [
        lambda: make_proof(14_000, 65_536, 10),
        lambda: make_proof(256, 65_536, 65_536),
        lambda: make_proof(10_000, 1_600, 1_600),
        _text([[]], 2_000_000),
    ]
    read = _in_file(folder / "proof.json", lambda path: check_proof(path, ["0" * 64]))
    return [make_proof(2, 12, 10)], mutations.of_json, read, bombs


def make_transcript(responses: int) -> bytes:
    """Returns a transcript of this many responses."""
    heading = {"format": 1, "created": "2026-01-01T00:00:00+00:00", "suspect": "s", "base": "b", "digest": "0" * 64}
    heading |= {
        "questions": max(responses, 1),
        "decoys": 2,
        "classes": 10,
        "alpha": 1e-6,
        "share": 0.5,
        "recipients": 3,
    }
    lines = [{"question": i, "image": "0" * 64, "answer": i % 10, "at": "now"} for i in range(responses)]
    return b"\n".join(json.dumps(line).encode() for line in [heading, *lines]) + b"\n"


def _transcript(folder: Path) -> Any:
    bombs = [
        lambda: make_transcript(100_000),
        lambda: (
            make_transcript(0).split(b"\n")[0].replace(b'"questions": 1', b'"questions": 1000000000')
            + b"\n" * 30_000_000
        ),
        lambda: make_transcript(5) + b"[" * 20_000_000 + b"\n",
    ]
    return [make_transcript(8)], mutations.of_lines, _in_file(folder / "transcript", read_transcript), bombs


def vault_with_copies(folder: Path) -> tuple[Vault, str]:
    """Returns a vault with a base, two copies and a trigger set, and its identity."""
    identity, public_key = new_identity()
    (folder / "model").mkdir()
    save_file(arrays(), folder / "model" / "model.safetensors")
    vault = Vault.create(folder / "vault", public_key=public_key)
    base = register(folder / "model", vault, FingerprintConfig(coalition=2, expected_recipients=4, amplitude=0.003))
    vault.add_trigger_set(base, make_trigger_set(base.base_id))
    for name in ("alice", "bob"):
        record, key = vault.begin_copy(base, name, f"/{name}")
        vault.mark_written(record, key, sha256(key).hexdigest(), is_issued=True)
    return vault, identity


def _pack(folder: Path) -> Any:
    vault, identity = vault_with_copies(folder)
    age_identity = AgeIdentity(identity)
    content = age_identity.decrypt(_packed(vault))
    public = age_identity.public_key

    def mutate(content: bytes, rng: np.random.Generator) -> bytes:
        if rng.random() < 0.2:
            return mutations.of_bytes(encrypt(content, public), rng)
        return encrypt(mutations.of_database(content, rng), public)

    def bomb() -> bytes:
        return encrypt(bytes(100_000_000), public)

    return [content], mutate, lambda packed: open_pack(packed, age_identity, "org/vault"), [bomb], _packed(vault)


def _packed(vault: Vault) -> bytes:
    from hf_fingerprint.vault.packing import pack_vault

    return pack_vault(vault)


def _vault(folder: Path) -> Any:
    vault, _ = vault_with_copies(folder)
    with vault.connect() as connection:
        content = connection.serialize()
    place = folder / "read"

    def read(content: bytes) -> object:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(vault.folder, place)
        for file in place.glob("vault.db*"):
            file.unlink()
        (place / "vault.db").write_bytes(content)
        opened = Vault(place)
        bases = opened.bases()
        return bases, opened.copies(), [opened.trigger_set(base) for base in bases], take_snapshot(opened)

    return [content], mutations.of_database, read


def make_trigger_set(base_id: str = "b", cover_images: tuple[bytes, ...] = ()) -> bytes:
    """Returns a trigger set in the form that the vault stores."""
    patterns, logits = np.zeros((3, GRID, GRID, 3), np.int8), np.zeros((1, 2, 10), np.float32)
    head_updates = np.zeros((1, 2, 4), np.float32)
    return TriggerSet(base_id, "head.weight", 2, 0.5, patterns, logits, head_updates, cover_images).to_bytes()


def _trigger_set(folder: Path) -> Any:
    cover_images = tuple(mutations.png(224, 224) for _ in range(3))
    secret = bytes(32)

    def read(content: bytes) -> object:
        found = TriggerSet.from_bytes(content)
        return found.images(secret).shape, found.assigned_labels([secret]), found.head_update(secret).shape

    bombs = [
        lambda: make_trigger_set(cover_images=(mutations.png(13_300, 13_300),) * 3),
        lambda: mutations.header_bomb(90_000_000),
    ]
    return [make_trigger_set(), make_trigger_set(cover_images=cover_images)], mutations.of_safetensors, read, bombs


def _identity(folder: Path) -> Any:
    import pyrage

    identity, _ = new_identity()
    locked = pyrage.passphrase.encrypt(identity.encode(), "x")
    start = locked.index(b"-> scrypt ")
    words = locked[start : locked.index(b"\n", start)].split(b" ")
    quick = locked.replace(b" ".join(words), b" ".join([*words[:-1], b"4"]))  # which its MAC then refuses
    read = _in_file(folder / "identity.age", lambda path: open_identity(path, "x"))
    return [quick], mutations.of_bytes, read, [lambda: bytes(300_000_000)]


def _issuer(folder: Path) -> Any:
    read = _in_file(folder / "ci.key", open_issuer_key)
    return [f"# issuer\n{new_identity()[0]}\n".encode()], mutations.of_bytes, read, [lambda: b"\n" * 100_000_000]


def _recipients(folder: Path) -> Any:
    sample = b'name,repo,account\nalice,org/a,alice\n"Bob, Ltd",org/b,\n'
    read = _in_file(folder / "recipients.csv", read_assignments)
    return [sample], mutations.of_bytes, read, [lambda: b"name,repo\n" + b'"' * 15_000_000, lambda: b"," * 100_000_000]


def _labels(folder: Path) -> Any:
    samples = [b"cat\ndog\nbird\n", b'["cat", "dog"]', json.dumps(CONFIG).encode()]
    bombs = [_text("", 2_000_000), lambda: b"\n" * 15_000_000, lambda: b"x\n" * 8_000_000, _text([[]], 1_000_000)]
    return samples, mutations.of_bytes, _in_file(folder / "labels", read_labels), bombs


def _reply(folder: Path) -> Any:
    labels = Labels([f"class {i}" for i in range(10)])
    samples = [
        *(b"3", b'"class 4"', b"class 4", b'{"label": "LABEL_3"}', json.dumps([0.1] * 10).encode()),
        *(b'[{"label": "class 1", "score": 0.5}, {"label": "class 2", "score": 0.4}]', b'{"predictions": [[0, 1]]}'),
    ]
    bombs = [_text([[]], 1_000_000), _text({"label": "x"}, 300_000), lambda: b"[" * 10_000_000]
    return samples, mutations.of_bytes, lambda body: parse_response(_parse_body(body), labels), bombs


def _card(folder: Path) -> Any:
    save_file(arrays(), folder / "model.safetensors")
    source = resolve(folder)

    def read(path: Path) -> object:
        return str(make_card(folder, "org/x", {}, "0" * 64)), list_contents(source)

    units = (b"![", b"<img ", b"\n", b"    ", b"BEGIN ", b"[x]: ")
    bombs: list[Callable[[], bytes]] = [lambda unit=unit: b"---\n" + unit * (1_900_000 // len(unit)) for unit in units]
    bombs.append(lambda: b"---\nx: " + b"[" * 100_000 + b"\n---\n")
    bombs.append(lambda: b"---\ntags: [" + b"a, " * 40_000 + b"b]\n---\n")
    return [CARD.encode()], mutations.of_bytes, _in_file(folder / "README.md", read), bombs
