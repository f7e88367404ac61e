"""Makes a timm model in the forms of the PyTorch family: TorchScript, its lite interpreter's files, quantized models,
exported programs and a distributed checkpoint. PyTorch 2.6 writes exported programs in an older format.

    pip install -r examples/forms/torch_forms.txt
    python examples/forms/torch_forms.py MODEL_FOLDER OUT_FOLDER

MODEL_FOLDER holds config.json and model.safetensors, as timm saves them.
"""

import copy
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx


VERSION = ".".join(torch.__version__.split(".")[:2])


def load(folder: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model of a timm folder, and an input."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(
        config["architecture"], num_classes=config["num_classes"], **config.get("model_args", {})
    )
    model.load_state_dict(load_file(folder / "model.safetensors"))
    torch.manual_seed(0)
    return model.eval(), torch.randn(1, *config["pretrained_cfg"]["input_size"])


def quantized_static(model: torch.nn.Module, example: torch.Tensor, engine: str) -> torch.nn.Module:
    """The model with 8-bit weights and activations: per channel with fbgemm, per tensor with qnnpack."""
    torch.backends.quantized.engine = engine
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(engine), (example,))
    with torch.no_grad():
        for _ in range(3):
            prepared(torch.randn(4, *example.shape[1:]))
    return convert_fx(prepared)


def exported(model: torch.nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """The program without what its graph says of source code, which makes most of a small file."""
    program = torch.export.export(model, (example,))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(key, None)
    return program


def forms(model: torch.nn.Module, example: torch.Tensor) -> dict[str, Callable[[Path], object]]:
    """By file name, what writes each form."""
    traced = torch.jit.trace(model, example)
    torch.backends.quantized.engine = "fbgemm"
    dynamic = quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    found = {
        "frozen_torchscript.pt": lambda path: torch.jit.save(torch.jit.freeze(traced), path),
        "lite.ptl": lambda path: torch.jit.freeze(traced)._save_for_lite_interpreter(str(path)),
        "flatbuffer.ptl": lambda path: traced._save_for_lite_interpreter(str(path), _use_flatbuffer=True),
        "dynamic_int8.pt": lambda path: torch.save(dynamic.state_dict(), path),
        "dynamic_int8_module.pt": lambda path: torch.save(dynamic, path),
        f"exported_{VERSION}.pt2": lambda path: torch.export.save(exported(model, example), path),
    }
    try:
        static = {engine: quantized_static(model, example, engine) for engine in ("fbgemm", "qnnpack")}
    except torch.fx.proxy.TraceError:  # a model whose padding depends on its input
        return found
    return found | {
        "static_int8_flatbuffer.ptl": lambda path: torch.jit.script(static["qnnpack"])._save_for_lite_interpreter(
            str(path), _use_flatbuffer=True
        ),
        "static_int8_torchscript.pt": lambda path: torch.jit.save(torch.jit.script(static["fbgemm"]), path),
        "static_int8_per_tensor.ptl": lambda path: torch.jit.freeze(
            torch.jit.script(static["qnnpack"])
        )._save_for_lite_interpreter(str(path)),
    }


def save_distributed(rank: int, across: int, weights: Path, out: Path) -> None:
    """Saves a state dict whose rows are sharded over two processes, and its columns over `across`, in one of them."""
    from torch.distributed import checkpoint
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29611", RANK=str(rank), WORLD_SIZE=str(2 * across))
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, across))
    state = {}
    for name, tensor in load_file(weights).items():
        places = [Shard(0), Shard(1) if tensor.ndim > 1 else Replicate()]
        state[name] = distribute_tensor(tensor, mesh, places) if tensor.ndim else tensor
    checkpoint.save({"model": state, "step": 3}, checkpoint_id=out)
    dist.destroy_process_group()


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    model, example = load(folder)
    for name, write in forms(model, example).items():
        write(out / name)
    for across, name in ((1, "distributed"), (2, "distributed_2d")):
        arguments = across, folder / "model.safetensors", out / name
        torch.multiprocessing.spawn(save_distributed, args=arguments, nprocs=2 * across)


if __name__ == "__main__":
    main()
