"""Files that often lie next to models and must not be copied, each with the reason that is reported."""

from pathlib import Path

from hf_fingerprint.checkpoints.kinds import CODE, NOT_SHOWN, OTHER, SECRET, SIGNED, STATE, UNMARKED
from hf_fingerprint.vault.sealing import new_identity


CANARY = b"canary-3f9c"  # in every file, to search for in copies
_AGE = b"age-encryption.org/v1\n-> scrypt "
_KEY = new_identity()[0].encode()

FILES = {
    "identity.age": (_AGE, SECRET),
    "keys/identity-old-abcd1234.age": (_AGE, SECRET),
    "notes.txt": (b"# public key: age1...\n" + _KEY, SECRET),
    "sub/labels.txt": (_KEY, SECRET),
    "tokenizer.json": (b'{"model": "' + _KEY.lower() + b'"}', SECRET),
    "LICENSE": (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", SECRET),
    "sub/preprocessor_config.json": (b'{"a": "hf_' + b"aB3" * 12 + b'"}', SECRET),
    "vocab.txt": (b"SQLite format 3\0", SECRET),
    "ci.key": (b"", SECRET),
    ".env": (b"TOKEN=1\n", SECRET),
    "deploy/.env.production": (b"", SECRET),
    ".netrc": (b"machine x password y\n", SECRET),
    "id_ed25519": (b"", SECRET),
    "cert/server.pem": (b"", SECRET),
    "token": (b"", SECRET),
    "aws_credentials.json": (b"{}", SECRET),
    "vault.db-wal": (b"", SECRET),
    "alice.proof.json": (b"{}", SECRET),
    "passphrase.txt": (b"", SECRET),
    "optimizer.pt": (b"", STATE),
    "sub/scheduler.pt": (b"", STATE),
    "training_args.bin": (b"", STATE),
    "trainer_state.json": (b"{}", STATE),
    "events.out.tfevents.1.host": (b"", STATE),
    "train.log": (b"", STATE),
    "pytorch_model.bin": (b"", UNMARKED),
    "onnx/model.onnx": (b"", UNMARKED),
    "model.safetensors.bak": (b"", UNMARKED),
    "model.sig": (b"", SIGNED),
    "SHA256SUMS": (b"", SIGNED),
    "model.safetensors.sha256": (b"", SIGNED),
    "README.md.asc": (b"", SIGNED),
    "modeling_own.py": (b"", CODE),
    "confusion.png": (b"\x89PNG", NOT_SHOWN),
    "customers.csv": (b"alice,org/a\n", OTHER),
    "train_labels.csv": (b"a.png,3\n", OTHER),
    "trace.ipynb": (b"{}", OTHER),
    "labels.json": (b'{"/home/ada/x.png": "cat", ', "not valid JSON"),
    "class_names.txt": (b"/home/ada/photos/cat\n", "contains local file paths"),
    "\x1b[2Jhidden.bin.\nx": (b"", OTHER),
}
FOLDERS = {
    ".git/HEAD": "the git history",
    ".cache/huggingface/token": "a cache",
    "checkpoint-500/model.safetensors": "training checkpoints, unmarked",
    ".ssh/config": SECRET,
    "runs/host/events.out.tfevents": STATE,
    "sub/__pycache__/x.pyc": "a cache",
    ".idea/workspace.xml": "a hidden folder",
}


def write_unsafe_files(folder: Path) -> dict[str, str]:
    """Writes all of them into a model's folder; returns the expected reason for each reported name."""
    for name, (content, _) in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content + CANARY)
    for name in FOLDERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CANARY)
    reasons = {name: reason for name, (_, reason) in FILES.items()}
    for name, reason in FOLDERS.items():
        depth = 2 if name.startswith("sub/") else 1
        reasons["/".join(name.split("/")[:depth]) + "/"] = reason
    return reasons
