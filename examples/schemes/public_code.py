"""Runs the public code of another scheme, unchanged, for `examples.benchmarks.side_by_side`.

    python examples/schemes/public_code.py SETUP.json

Reads a request from each line of stdin and writes a response to a line of stdout, both JSON. Nothing of the public
code is copied: it is imported from a checkout, with the settings of its own configuration files.
"""

import contextlib
import importlib.util
import json
import logging
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset


TOOLBOX_PACKAGES = ("wrt", "wrt.attacks", "wrt.defenses", "wrt.defenses.watermark", "wrt.training")
LIBRARIES = ("torch", "numpy", "pyldpc", "numba", "mlconfig")


class Tattooed:
    """TATTOOED with the settings and the text of its repository."""

    def __init__(self, setup: dict[str, Any]):
        checkout, settings = Path(setup["checkout"]), read_yaml(setup["checkout"], "config/config.yaml")["watermark"]
        sys.path.insert(0, str(checkout))
        stubbed = ""
        if importlib.util.find_spec("pytorch_lightning") is None:
            # The package imports it for its training callbacks, which neither embed nor extract.
            stub = ModuleType("pytorch_lightning")
            stub.Callback = object  # type: ignore[attr-defined]
            sys.modules["pytorch_lightning"] = stub
            stubbed = "; pytorch_lightning is a stub, which neither embedding nor extraction uses"
        from watermark.watermark import Watermark

        self._gamma = settings["gamma"]
        self._mark = Watermark(
            seed=settings["seed"],
            ldpc_seed=settings["ldpc_seed"],
            parameter_seed=settings["parameter_seed"],
            ratio=settings["ratio"],
            device="cpu",
            error_correction=settings["error_correction"],
            watermark_path=checkout / settings["embed_path"],
            result_path=Path(setup["work"]),
            logger=logging.getLogger("tattooed"),
        )
        self.bits = len(self._mark.message)
        used = f"ratio {settings['ratio']}, gamma {settings['gamma']}"
        self.note = f"its embed and extract run unchanged, with the settings of its config.yaml ({used}){stubbed}"

    def embed(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Returns the marked weights."""
        return self._mark.embed(model, self._gamma)

    def extract(self, model: torch.nn.Module) -> bool:
        """Returns whether the scheme says that the mark is there."""
        return bool(self._mark.extract(model))

    def wrong_bits(self, model: torch.nn.Module) -> None:
        """The scheme says only whether all bits are right."""


class Toolbox:
    """DeepMarks in the Watermark-Robustness-Toolbox with its settings for CIFAR-10, on other images."""

    def __init__(self, setup: dict[str, Any]):
        checkout = Path(setup["checkout"])
        marking = read_yaml(checkout, "configs/cifar10/wm_configs/deepmarks.yaml")
        schedule = read_yaml(checkout, "configs/cifar10/train_configs/resnet.yaml")["scheduler"]
        os.environ["HOME"] = setup["work"]  # it writes a configuration there when it is imported
        sys.path.insert(0, str(checkout))
        for name in TOOLBOX_PACKAGES:  # their __init__ files import every attack, and a package that is not public
            package = ModuleType(name)
            package.__path__ = [str(checkout.joinpath(*name.split(".")))]
            sys.modules[name] = package
        from wrt.classifiers import PyTorchClassifier
        from wrt.defenses.watermark.deepmarks import Deepmarks

        self._classifier, self._deepmarks = PyTorchClassifier, Deepmarks
        self._marking, self._classes = marking, setup["classes"]
        self._optimizer = {key: value for key, value in marking["optimizer"].items() if key != "name"}
        # The optimizer is loaded with the pretrained model: its learning rate is where the schedule ended.
        self._optimizer["lr"] *= schedule["gamma"] ** len(schedule["milestones"])
        images = load_file(setup["images"])
        data, batch = TensorDataset(images["images"], images["labels"]), marking["dataset"]["batch_size"]
        self._train = DataLoader(data, batch_size=batch, shuffle=True)
        self._valid = DataLoader(TensorDataset(*data[:batch]), batch_size=batch)
        self._shape = tuple(images["images"].shape[1:])
        self._epochs, self.bits = setup["epochs"], marking["embed"]["keylength"]
        self._signature = np.random.default_rng(0).integers(0, 2, self.bits).astype(np.float32)
        self.steps, self.batch, self.published_epochs = 0, batch, marking["embed"]["epochs"]
        self.note = (
            "its embed and verify run unchanged; the `__init__` files of five packages are skipped, which import "
            "every attack; the settings are those of its CIFAR-10 configuration (gamma "
            f"{marking['wm_scheme']['gamma']}, batches of {batch}, "
            f"the learning rate {self._optimizer['lr']:.2g} at which its schedule ends)"
        )

    def embed(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Trains the mark into a model, and returns its weights."""
        scheme, settings, self.steps = self._scheme(model), self._marking["embed"], 0
        self._key, self._expected = scheme.embed(
            self._train,
            self._valid,
            keylength=self.bits,
            signature=self._signature,
            epochs=self._epochs,
            patience=settings["patience"],
            check_every_n_batches=settings["check_every_n_batches"],
            device="cpu",
        )
        return model.state_dict()

    def extract(self, model: torch.nn.Module) -> bool:
        """Returns whether the scheme says that the mark is there."""
        scheme = self._scheme(model)
        return bool(scheme.verify(self._key, self._expected, scheme.classifier)[1])

    def wrong_bits(self, model: torch.nn.Module) -> int:
        """Returns the number of wrong bits at half of the trained value; the toolbox itself decodes no bits."""
        extracted = self._scheme(model).extract(self._key) * np.linalg.norm(self._signature)
        return int(((extracted > 0.5) != (self._signature > 0.5)).sum())

    def _scheme(self, model: torch.nn.Module) -> Any:
        settings = self._marking["wm_scheme"]
        optimizer = getattr(torch.optim, self._marking["optimizer"]["name"])(model.parameters(), **self._optimizer)
        optimizer.register_step_post_hook(self._count)
        classifier = self._classifier(
            model=model,
            clip_values=(0, 1),
            loss=torch.nn.CrossEntropyLoss(),
            optimizer=optimizer,
            input_shape=self._shape,
            nb_classes=self._classes,
            device_type="cpu",
        )
        return self._deepmarks(classifier, layer_index=settings["layer_index"], gamma=settings["gamma"])

    def _count(self, *_: Any) -> None:
        self.steps += 1


SCHEMES = {"tattooed": Tattooed, "toolbox": Toolbox}


def read_yaml(checkout: str | Path, file: str) -> Any:
    """Returns a configuration of the checkout."""
    return yaml.safe_load(Path(checkout, file).read_text())


def respond(scheme: Tattooed | Toolbox, model: torch.nn.Module, request: dict[str, str]) -> dict[str, Any]:
    """Issues a copy or extracts from a suspect, and returns the seconds, whole and without files."""
    started = time.perf_counter()
    model.load_state_dict(load_file(request["source"]))
    begun = time.perf_counter()
    if request["work"] == "extract":
        present = scheme.extract(model.eval())
        done = time.perf_counter()
        return {
            "whole": done - started,
            "inner": done - begun,
            "present": present,
            "wrong": scheme.wrong_bits(model),
        }
    state = scheme.embed(model)
    done = time.perf_counter()
    Path(request["copy"]).parent.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, request["copy"])
    whole, steps = time.perf_counter() - started, getattr(scheme, "steps", None)
    return {"whole": whole, "inner": done - begun, "steps": steps}


def serve(setup: dict[str, Any], requests: TextIO, responses: TextIO) -> None:
    """Opens a scheme and responds to each request."""
    torch.set_num_threads(setup["threads"])
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the public code draws from it
    scheme = SCHEMES[setup["scheme"]](setup)
    model = timm.create_model(setup["architecture"], num_classes=setup["classes"])
    about: dict[str, Any] = {
        name: getattr(scheme, name, None) for name in ("bits", "note", "batch", "published_epochs")
    }
    about["versions"] = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            about["versions"][name] = version(name)
    print(json.dumps(about), file=responses, flush=True)
    for line in requests:
        print(json.dumps(respond(scheme, model, json.loads(line))), file=responses, flush=True)


def main() -> None:
    """Serves until stdin ends. What the public code prints goes to stderr."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(json.loads(Path(sys.argv[1]).read_text()), sys.stdin, responses)


if __name__ == "__main__":
    main()
