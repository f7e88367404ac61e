"""What the pages of docs/ take for granted: models on a loopback Hub, images, a vault, a suspect, a service."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save

from hf_fingerprint import FingerprintConfig, Vault, issue, make_trigger_set, register
from tests.helpers.docs_pages import PageRun
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.loopback_hub_http import LoopbackServer
from tests.helpers.small_models import PASSPHRASE, build, save_timm, save_vit


CLASSES = ["airplane", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "tree", "truck"]
TOKEN = "hf_the-owner-of-org"
SERVICE = "https://api.example/classify"


@contextmanager
def reader(folder: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[PageRun]:
    """Yields a reader in a fresh folder, logged in on a loopback Hub, with the named things in place."""
    with ExitStack() as stack:
        hub = stack.enter_context(LoopbackHub())
        hub.point_client(monkeypatch, folder.parent / "cache")
        hub.account("owner", orgs={"org"}, token=TOKEN)
        hub.account("alice-hf")
        for name, value in hub.environment(folder.parent / "cache").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_FINGERPRINT_PASSPHRASE", PASSPHRASE)
        monkeypatch.setattr("getpass.getpass", lambda prompt="": PASSPHRASE)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        save_images(folder / "photos")
        hub.add("org/model", save_model(folder.parent / "model"), lfs=True)
        here = PageRun(folder)
        for name in names:
            SETUPS[name](here, hub, stack)
        yield here


def save_images(folder: Path, each: int = 8) -> None:
    """Saves photos of noise, a folder for each class."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(folder / name / f"{i}.png")


def save_model(folder: Path, seed: int = 0) -> Path:
    """Saves a small ViT of transformers, with class names, a preprocessor and a card."""
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    save_vit(folder, seed, hidden_size=128, **names)
    size, half = {"height": 32, "width": 32}, [0.5, 0.5, 0.5]
    given = {"size": size, "image_mean": half, "image_std": half, "image_processor_type": "ViTImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


def add_version(here: PageRun, hub: LoopbackHub, stack: ExitStack) -> None:
    """`org/model-v2`: a later version of the base."""
    hub.add("org/model-v2", save_model(here.folder.parent / "model-v2", seed=1), lfs=True)


def add_ancestor(here: PageRun, hub: LoopbackHub, stack: ExitStack) -> None:
    """`org/pretrained`: the model that `org/model` was fine-tuned from."""
    weights, rng = load_file(here.folder.parent / "model" / "model.safetensors"), np.random.default_rng(0)
    before = {
        name: (each + 0.1 * each.std() * rng.standard_normal(each.shape)).astype(each.dtype) if each.ndim > 1 else each
        for name, each in weights.items()
    }
    hub.add("org/pretrained", {"model.safetensors": save(before)})


def add_timm_model(here: PageRun, hub: LoopbackHub, stack: ExitStack) -> None:
    """`org/timm-model`: a small ResNet of timm."""
    hub.add("org/timm-model", save_timm(here.folder.parent / "timm", "test_resnet", num_classes=10), lfs=True)


def make_vault(here: PageRun, hub: LoopbackHub, stack: ExitStack, triggers: bool = False) -> None:
    """`vault`, with a copy of `org/model` for alice and one for bob in `copies`."""
    vault = Vault.create(here.folder / "vault", PASSPHRASE)
    register("org/model", vault, FingerprintConfig(coalition=3, expected_recipients=10))
    if triggers:
        make_trigger_set("org/model", vault, here.folder / "photos", count=24, decoys=4, steps=1)
    for name in ("alice", "bob"):
        issue("org/model", name, vault, here.folder / "copies" / name)


def add_suspect(here: PageRun, hub: LoopbackHub, stack: ExitStack) -> None:
    """`org/suspect`, `suspect.safetensors` and `app.apk`: alice's copy, which leaked."""
    hub.add("org/suspect", here.folder / "copies" / "alice", lfs=True)
    weights = (here.folder / "copies" / "alice" / "model.safetensors").read_bytes()
    (here.folder / "suspect.safetensors").write_bytes(weights)
    with zipfile.ZipFile(here.folder / "app.apk", "w", zipfile.ZIP_DEFLATED) as app:
        app.writestr("assets/model.bin", weights)


def open_base(here: PageRun, hub: LoopbackHub, stack: ExitStack) -> None:
    """The files of `org/model` in `base`, and the names `vault` and `passphrase` of an earlier page."""
    shutil.copytree(here.folder.parent / "model", here.folder / "base")
    here.namespace |= {"vault": Vault(here.folder / "vault"), "passphrase": PASSPHRASE}


def start_service(here: PageRun, hub: LoopbackHub, stack: ExitStack) -> None:
    """A service that runs alice's copy at `https://api.example/classify`."""
    import torch

    served = cache(lambda: build(here.folder / "copies" / "alice"))  # the page issues it

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def do_POST(self) -> None:
            picture = Image.open(BytesIO(self.rfile.read(int(self.headers["Content-Length"]))))
            with torch.inference_mode():
                model = served()
                logits = model.module(model.preprocess(picture.convert("RGB"))[None])
            body = json.dumps({"label": CLASSES[int(getattr(logits, "logits", logits).argmax())]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Logs nothing."""

    server = LoopbackServer(Handler)
    stack.callback(server.stop)
    here.addresses[SERVICE] = f"{server.url}/classify"


SETUPS: dict[str, Callable[[PageRun, LoopbackHub, ExitStack], None]] = {
    "ancestor": add_ancestor,
    "timm": add_timm_model,
    "version": add_version,
    "vault": make_vault,
    "triggers": partial(make_vault, triggers=True),
    "suspect": add_suspect,
    "base": open_base,
    "service": start_service,
}
