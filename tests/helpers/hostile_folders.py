"""Model folders of an attacker, and a watch for violations by this process.

Each folder holds real weights and says more than a model's folder should: where to fetch others, what to unpickle,
which code to import, how much memory to take. `PAYLOAD` is a pickle that runs a command; `MODULES` are Python files
that leave a marker when they are run.
"""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


PAYLOAD, MARKER = "payload.pth", "it ran"
MODULES = (
    "modeling_evil.py", "configuration_evil.py", "processing_evil.py", "custom_generate/generate.py", "__init__.py"
)  # fmt: skip
ADDRESS = "http://127.0.0.1:9/evil/x/resolve/main/model.pth"  # no server
_COMMANDS = frozenset(["subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"])
_MAPS = {
    "AutoConfig": "configuration_evil.Evil",
    "AutoModel": "modeling_evil.Evil",
    "AutoModelForImageClassification": "modeling_evil.Evil",
    "AutoImageProcessor": "processing_evil.Evil",
}


@dataclass(frozen=True)
class Kind:
    """One kind of folder.

    Attributes:
        form (`str`): `"timm"` or `"vit"`, the library of the model that it is made from.
        config (`dict`): entries of its config.json that differ; in texts `@payload` stands for the payload's path and
            `@folder` for a folder that holds it.
        files (`dict`): further JSON files, by name.
        builds (`bool`): whether the model is built all the same, as what is hostile is passed over.
    """

    form: str
    config: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    builds: bool = False


def _timm(**arguments: Any) -> Kind:
    return Kind("timm", {"model_args": arguments})


def _cfg(builds: bool = True, **entries: Any) -> Kind:
    return Kind("timm", {"pretrained_cfg": entries}, builds=builds)


def _vit(**entries: Any) -> Kind:
    return Kind("vit", entries)


def _ignored(**entries: Any) -> Kind:
    return Kind("vit", entries, builds=True)


def _processor(name: str = "preprocessor_config.json", **entries: Any) -> Kind:
    return Kind("vit", {}, {name: entries}, builds=True)


_WRAPPER = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}
KINDS = {
    "overlay url": _timm(pretrained_cfg_overlay={"url": ADDRESS}),
    "overlay file": _timm(pretrained_cfg_overlay={"file": "@payload"}),
    "overlay hub": _timm(pretrained_cfg_overlay={"hf_hub_id": "evil/x", "source": "hf-hub"}),
    "overlay and pretrained": _timm(pretrained=True, pretrained_cfg_overlay={"url": ADDRESS}),
    "cache folder": _timm(cache_dir="@folder"),
    "checkpoint path": _timm(checkpoint_path="@payload"),
    "pretrained": _timm(pretrained=True),
    "another configuration": _timm(pretrained_cfg={"url": ADDRESS}),
    "configuration by name": _timm(pretrained_cfg="hf-hub:evil/x"),
    "loader's switches": _timm(pretrained_strict=False, pretrained_filter_fn="os.system"),
    "model made of names": _timm(block_fn="os.system"),
    "layer by path": _timm(norm_layer="../../evil"),
    "features": _timm(features_only=True, feature_cls="fx"),
    "pruned": _timm(pruned=True),
    "arguments that are a list": Kind("timm", {"model_args": ["@payload"]}),
    "architecture on the hub": Kind("timm", {"architecture": "hf-hub:evil/x"}),
    "architecture on the hub, older": Kind("timm", {"architecture": "hf_hub:evil/x@main"}),
    "architecture in a folder": Kind("timm", {"architecture": "local-dir:@folder"}),
    "architecture in a path": Kind("timm", {"architecture": "@folder"}),
    "architecture of many characters": Kind("timm", {"architecture": "test_vit." + "a" * 10_000}),
    "url": _cfg(url=ADDRESS),
    "file": _cfg(file="@payload", source="file"),
    "hub": _cfg(hf_hub_id="evil/x", source="hf-hub", hf_hub_filename="@payload"),
    "custom load": _cfg(custom_load=True, file="@payload"),
    "state": _cfg(state_dict={"x": 1}),
    "deep": _timm(depth=1_000_000),
    "wide": _timm(embed_dim=1 << 20, num_heads=1),
    "long": _timm(img_size=1 << 19),
    "endless": _timm(mlp_ratio=1e300),
    "many classes": _timm(num_classes=1 << 60),
    "large images": _cfg(builds=False, input_size=[3, 1 << 20, 1 << 20]),
    "large crops": _cfg(builds=False, crop_pct=1e-9),
    "wrapper and checkpoint": Kind("timm", {**_WRAPPER, "model_args": {"checkpoint_path": "@payload"}}),
    "wrapper of the hub": Kind("timm", {**_WRAPPER, "architecture": "hf-hub:evil/x"}),
    "wrapper without a configuration": Kind(
        "timm", {**_WRAPPER, "pretrained_cfg": None, "model_args": {"pretrained_cfg_overlay": {"url": ADDRESS}}}
    ),
    "code": _ignored(auto_map=_MAPS),
    "code of its own type": _vit(model_type="evil", auto_map=_MAPS),
    "code elsewhere": _ignored(auto_map={kind: f"evil/x--{name}" for kind, name in _MAPS.items()}),
    "trust": _ignored(trust_remote_code=True, auto_map=_MAPS),
    "name of a repo": _ignored(_name_or_path="evil/x", name_or_path="evil/x"),
    "attention kernel": _ignored(attn_implementation="evil/kernels", _attn_implementation="evil/kernels"),
    "attention kernel inside": _ignored(_attn_implementation_internal="evil/kernels"),
    "experts kernel": _ignored(experts_implementation="evil/kernels", _experts_implementation="evil/kernels"),
    "kernels": _ignored(use_kernels=True, kernel_config={"Linear": "evil/kernels:x"}),
    "fusion": _ignored(fusion_config={"patch_embeddings": True}),
    "other weights": _ignored(transformers_weights="../@payload", extra_files=["@payload"]),
    "quantised": _ignored(quantization_config={"quant_method": "gptq", "bits": 4, "tokenizer": "evil/x"}),
    "distributed": _ignored(distributed_config={"tp_size": 2}, tp_plan="auto"),
    "layers apart": _ignored(per_layer_config={"0": {"hidden_size": 1 << 20}}),
    "type by path": _ignored(dtype="../@payload", torch_dtype="os"),
    "backbone": _vit(backbone="evil/x", use_pretrained_backbone=True),
    "backbone of timm": _vit(
        model_type="upernet",
        architectures=["UperNetForSemanticSegmentation"],
        backbone_config={"model_type": "timm_backbone", "backbone": "hf-hub:evil/x", "use_pretrained_backbone": True},
    ),
    "any class": _vit(architectures=["AutoModelForImageClassification"]),
    "class by path": _vit(architectures=["os.system"]),
    "class of another model": _vit(architectures=["PreTrainedModel"]),
    "activation by path": _vit(hidden_act="@payload"),
    "huge layers": _vit(hidden_size=1 << 20, num_attention_heads=1, intermediate_size=1 << 20),
    "many layers": _vit(num_hidden_layers=1 << 20),
    "huge images": _vit(image_size=1 << 20),
    "countless labels": _vit(id2label=None, num_labels=1 << 60),
    "settings that are a list": Kind("vit", {"vision_config": ["@payload"], "id2label": ["@payload"]}),
    "adapter": Kind(
        "vit", {}, {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "evil/x"}}, builds=True
    ),
    "generation": Kind("vit", {}, {"generation_config.json": {"custom_generate": "evil/x"}}, builds=True),
    "processor with code": _processor(image_processor_type="Evil", auto_map=_MAPS),
    "processor of the hub": _processor(
        image_processor_type="TimmWrapperImageProcessor", architecture="hf-hub:evil/x", pretrained_cfg={"url": ADDRESS}
    ),
    "processor inside": _processor("processor_config.json", image_processor={"auto_map": _MAPS, "size": 32}),
    "processor by path": _processor(image_processor_type="../@payload"),
    "processor's large images": Kind("vit", {}, {"preprocessor_config.json": {"size": {"height": 1 << 20}}}),
    "processor that is a list": _processor(image_processor_type=["@payload"], size=32),
}  # fmt: skip


def write_hostile_folder(kind: Kind, model: Path, folder: Path) -> Path:
    """Makes the folder of a kind from a model's folder, and returns it."""
    shutil.copytree(model, folder)
    plant(folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in kind.config.items():
        merged = {**config.get(name, {}), **value} if isinstance(value, dict) and name in config else value
        config[name] = _placed(merged, folder)
    (folder / "config.json").write_text(json.dumps(config))
    for name, entries in kind.files.items():
        (folder / name).write_text(json.dumps(_placed(entries, folder)))
    return folder


def plant(folder: Path) -> None:
    """Writes the payload and the modules into a folder."""
    marker = folder / MARKER
    (folder / "inner").mkdir()
    for place in (folder, folder / "inner"):
        (place / PAYLOAD).write_bytes(pickle.dumps(_Command(marker)))
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    classes = "class Evil:\n    from_pretrained = classmethod(lambda kind, *a, **k: kind())\n"
    for name in MODULES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code + classes)


class _Command:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _placed(each, folder) for name, each in value.items()}
    if isinstance(value, list):
        return [_placed(each, folder) for each in value]
    if isinstance(value, str):
        return value.replace("@payload", str(folder / "inner" / PAYLOAD)).replace("@folder", str(folder / "inner"))
    return value


class Watch:
    """What this process did that no model's folder may make it do: connections, commands, code or a payload from the
    folder, files written outside of some folders.

    Args:
        allowed (`Path`): folders that may be written to.
        ports (`int`): on 127.0.0.1 that may be connected to.
    """

    def __init__(self, *allowed: Path, ports: tuple[int, ...] = ()):
        self._allowed, self._ports = (*map(str, allowed), "/dev/"), ports
        self._hostile: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    @contextmanager
    def over(self, hostile: Path) -> Iterator[list[str]]:
        """Yields the list of violations while a hostile folder is used."""
        self._hostile, self.seen = str(hostile), []
        try:
            yield self.seen
        finally:
            self._hostile = None
        self.seen += [f"the payload ran: {marker}" for marker in hostile.rglob(MARKER)]

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._hostile is not None and self._forbidden(event, arguments):
            self.seen.append(f"{event} {arguments[:2]}")

    def _forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "socket.getaddrinfo":
            return arguments[1] not in self._ports
        if event == "socket.connect":
            return tuple(arguments[1])[1:2] not in [(port,) for port in self._ports]
        if event == "exec":
            return getattr(arguments[0], "co_filename", "").startswith(str(self._hostile))
        if event == "open" and isinstance(arguments[0], str):
            name, _, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
            return name.endswith(f"inner/{PAYLOAD}") or (writes and not name.startswith(self._allowed))
        return event in _COMMANDS
