"""Makes the Core ML forms of a timm classifier with coremltools.

    pip install -r examples/forms/coreml_files.txt
    python examples/forms/coreml_files.py MODEL_FOLDER OUT_FOLDER

MODEL_FOLDER holds config.json and model.safetensors, as timm saves them. Xcode, which compiles a package to the
`.mlmodelc` folder of an app, runs only on a Mac. `compile_program` and `compile_network` print what it prints.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import coremltools
import numpy as np
import timm
import torch
from coremltools.models import MLModel
from coremltools.models.neural_network import quantization_utils
from coremltools.optimize import coreml as compress
from coremltools.proto import MIL_pb2
from safetensors.torch import load_file
from sklearn.cluster import KMeans


IOS = {15: coremltools.target.iOS15, 16: coremltools.target.iOS16, 18: coremltools.target.iOS18}
NAMES = {"FLOAT16": "fp16", "FLOAT32": "fp32", "FLOAT64": "fp64", "BFLOAT16": "bf16"}
SMALLEST = 64  # elements of a weight; smaller ones are not compressed


def load_model(folder: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """The classifier in a folder, and an input for it."""
    config = json.loads((folder / "config.json").read_text())
    arguments = config.get("model_args", {})
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **arguments)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    torch.manual_seed(0)
    return model.eval(), torch.randn(1, *config["pretrained_cfg"]["input_size"])


def to_program(traced: torch.jit.ScriptModule, image: torch.Tensor, ios: int, half: bool = True) -> MLModel:
    """The model as a program, the form of iOS 15 and later."""
    precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
    shapes = [coremltools.TensorType(name="image", shape=image.shape)]
    return coremltools.convert(
        traced, inputs=shapes, compute_precision=precision, minimum_deployment_target=IOS[ios], skip_model_load=True
    )


def linear(model: MLModel, bits: int = 8, block: int = 0) -> MLModel:
    """A program with weights as integers with a scale for each output, or each block of inputs."""
    by_block = {"granularity": "per_block", "block_size": block} if block else {}
    config = compress.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype=f"int{bits}", weight_threshold=SMALLEST, **by_block
    )
    return compress.linear_quantize_weights(model, compress.OptimizationConfig(global_config=config))


def unsigned(model: MLModel) -> MLModel:
    """A program with weights as integers with a scale and a zero point for each output."""
    config = compress.OpLinearQuantizerConfig(mode="linear", dtype="uint8", weight_threshold=SMALLEST)
    return compress.linear_quantize_weights(model, compress.OptimizationConfig(global_config=config))


def palettes(model: MLModel, bits: int, joint: bool = False, **options: object) -> MLModel:
    """A program with weights as indices into tables."""
    config = compress.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=SMALLEST, **options)
    return compress.palettize_weights(
        model, compress.OptimizationConfig(global_config=config), joint_compression=joint
    )


def prune(model: MLModel) -> MLModel:
    """A program whose smaller half of weights is left out."""
    config = compress.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=SMALLEST)
    return compress.prune_weights(model, compress.OptimizationConfig(global_config=config))


def joint_linear(model: MLModel, granularity: str = "per_channel") -> MLModel:
    """A pruned program whose weights are integers too, or one of palettes whose tables are."""
    config = compress.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity=granularity, weight_threshold=SMALLEST
    )
    return compress.linear_quantize_weights(
        model, compress.OptimizationConfig(global_config=config), joint_compression=True
    )


def clusters(bits: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table of means of clusters, and each weight's index in it."""
    found = KMeans(min(2**bits, np.unique(weights).size), n_init=1, random_state=0).fit(weights.reshape(-1, 1))
    table = np.zeros(2**bits)
    table[: found.n_clusters] = found.cluster_centers_[:, 0]
    return table, found.labels_


def _type(kind: MIL_pb2.ValueType) -> str:
    """A type as the compiler prints it."""
    if kind.WhichOneof("type") != "tensorType":
        return "list<string, ?>"
    name = MIL_pb2.DataType.Name(kind.tensorType.dataType)
    name = NAMES.get(name, name.lower())
    sizes = [each.constant.size for each in kind.tensorType.dimensions]
    return f"tensor<{name}, {sizes}>" if sizes else name


def _number(value: float | int | bool | str) -> str:
    """A number as the compiler prints it: floating-point ones in hexadecimal, without trailing zeros."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, int | np.integer):
        return str(value)
    head, _, exponent = float(value).hex().partition("p")
    return f"{head.rstrip('0').rstrip('.')}p{int(exponent)}" if exponent else head


def _nested(values: list, sizes: list[int]) -> str:
    """Numbers in row-major order as nested lists."""
    if not sizes:
        return _number(values[0])
    step = max(len(values) // sizes[0], 1)
    parts = (_nested(values[at : at + step], sizes[1:]) for at in range(0, len(values), step))
    return f"[{', '.join(parts)}]"


def _value(value: MIL_pb2.Value) -> str:
    """A value as the compiler prints it."""
    kind = _type(value.type)
    if value.WhichOneof("value") == "blobFileValue":
        blob = value.blobFileValue
        return f'{kind}(BLOBFILE(path = string("{blob.fileName}"), offset = uint64({blob.offset})))'
    tensor = value.immediateValue.tensor
    which = tensor.WhichOneof("value")
    values = list(getattr(tensor, which).values) if which else []
    if which == "bytes":
        dtype = MIL_pb2.DataType.Name(value.type.tensorType.dataType).lower()
        values = np.frombuffer(tensor.bytes.values, dtype).tolist()
    return f"{kind}({_nested(values, [each.constant.size for each in value.type.tensorType.dimensions])})"


def _argument(argument: MIL_pb2.Argument) -> str:
    """What an operation receives, as the compiler prints it."""
    parts = [each.name or _value(each.value) for each in argument.arguments]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _lines(program: MIL_pb2.Program) -> Iterator[str]:
    """A program as the compiler prints it."""
    yield "program(1.3)"
    yield (
        '[buildInfo = dict<string, string>({{"coremlc-component-MIL", "3404.23.1"}, {"coremlc-version", "3404.23.1"}, '
        '{"coremltools-component-torch", "2.14.1"}, '
        '{"coremltools-version", "9.0"}})]'
    )
    yield "{"
    for name, function in sorted(program.functions.items()):
        inputs = ", ".join(f"{_type(each.type)} {each.name}" for each in function.inputs)
        yield f"    func {name}<{function.opset[0].lower() + function.opset[1:]}>({inputs}) {{"
        for block in function.block_specializations.values():
            for operation in block.operations:
                outputs = ", ".join(f"{_type(each.type)} {each.name}" for each in operation.outputs)
                inputs = ", ".join(f"{key} = {_argument(each)}" for key, each in sorted(operation.inputs.items()))
                notes = ", ".join(f"{key} = {_value(each)}" for key, each in sorted(operation.attributes.items()))
                yield f"            {outputs} = {operation.type}({inputs})[{notes}];"
            yield f"        }} -> ({', '.join(block.outputs)});"
    yield "}"


def compile_program(package: Path, out: Path) -> None:
    """Writes a package of a program as Xcode compiles it for an app."""
    inside = package / "Data" / "com.apple.CoreML"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(inside / "weights", out / "weights")
    program = coremltools.utils.load_spec(str(package)).mlProgram
    (out / "model.mil").write_text("\n".join(_lines(program)) + "\n")


def compile_network(path: Path, out: Path, half: bool = False) -> None:
    """Writes a neural network of convolutions, matrices and batch normalizations as Xcode compiles it for an app."""
    spec = coremltools.utils.load_spec(str(path))
    network = getattr(spec, spec.WhichOneof("Type"))
    if any(layer.WhichOneof("layer") in ("scale", "loadConstantND") for layer in network.layers):
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    blobs: list[bytes] = []
    layers = []

    def keep(values: np.ndarray) -> int:
        blobs.append(values.tobytes())
        return len(blobs) - 1

    for layer in network.layers:
        entry = {"name": layer.name, "bottom": ",".join(layer.input), "top": ",".join(layer.output), "weights": {}}
        which = layer.WhichOneof("layer")
        parameters = getattr(layer, which)
        if which == "convolution":
            high, wide = parameters.kernelSize
            groups = parameters.nGroups or 1
            entry |= {"type": which, "C": parameters.outputChannels, "K": parameters.kernelChannels * groups}
            entry |= {"Nx": wide, "Ny": high, "n_groups": groups, "n_parallel": 1}
        elif which in ("innerProduct", "batchedMatmul"):
            size = (
                (parameters.inputChannels, parameters.outputChannels)
                if which == "innerProduct"
                else (parameters.weightMatrixFirstDimension, parameters.weightMatrixSecondDimension)
            )
            entry |= {"type": "inner_product", "nB": size[0], "nC": size[1]}
        elif which == "batchnorm":
            fields = (parameters.gamma, parameters.beta, parameters.mean, parameters.variance)
            rows = np.stack([np.array(each.floatValue, np.float32) for each in fields], -1)
            entry |= {"type": which, "C": parameters.channels, "blob_batchnorm_params": keep(rows)}
        else:
            entry["type"] = which
        if entry["type"] in ("convolution", "inner_product"):
            weights = np.array(parameters.weights.floatValue, np.float16 if half else np.float32)
            entry["blob_weights_f16" if half else "blob_weights"] = keep(weights)
            entry["has_biases"] = int(parameters.hasBias)
            if parameters.hasBias:
                entry["blob_biases"] = keep(np.array(parameters.bias.floatValue, np.float32))
        layers.append(entry)
    head = np.array([len(blobs), *(each for pair in enumerate(map(len, blobs)) for each in pair)], "<u8")
    (out / "model.espresso.weights").write_bytes(head.tobytes() + b"".join(blobs))
    net = {"storage": "model.espresso.weights", "analyses": {}, "format_version": 200, "layers": layers}
    (out / "model.espresso.net").write_text(json.dumps(net))
    (out / "model.espresso.shape").write_text(json.dumps({"layer_shapes": {}}))


def main() -> None:
    """Makes all forms."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    model, image = load_model(source)
    if hasattr(timm.layers, "set_fused_attn"):
        timm.layers.set_fused_attn(False)
    with torch.no_grad():
        traced = torch.jit.trace(model, image)
    old, new = to_program(traced, image, 16), to_program(traced, image, 18)
    grouped = {"granularity": "per_grouped_channel", "group_size": 8}
    forms = {
        "fp32": to_program(traced, image, 15, half=False),
        "fp16": old,
        "int8": linear(old),
        "uint8": unsigned(old),
        "int4": linear(new, 4, 8),
        "palette4": palettes(old, 4),
        "palette6": palettes(new, 6),
        "palette8": palettes(old, 8),
        "palette3_grouped": palettes(new, 3, **grouped),
        "palette2_vectors": palettes(new, 2, cluster_dim=2, **grouped),
        "palette4_int8_tables": joint_linear(palettes(new, 4, **grouped), "per_tensor"),
        "sparse": prune(old),
        "sparse18": prune(new),
        "sparse_palette4": palettes(prune(new), 4, joint=True),
        "sparse_int8": joint_linear(prune(new)),
    }
    for name, form in forms.items():
        form.save(str(out / f"{name}.mlpackage"))
    for name in ("fp16", "int8", "int4", "palette4", "palette3_grouped", "sparse", "sparse_int8"):
        compile_program(out / f"{name}.mlpackage", out / f"{name}.mlmodelc")
    network = coremltools.convert(
        traced,
        inputs=[coremltools.TensorType(name="image", shape=image.shape)],
        convert_to="neuralnetwork",
        minimum_deployment_target=coremltools.target.iOS14,
    )
    networks = {"network": network}
    for bits, mode, name in (
        (16, "linear", "fp16"), (8, "linear", "linear8"), (8, "linear_lut", "lut8"), (4, "custom_lut", "lut4")
    ):  # fmt: skip
        networks[f"network_{name}"] = quantization_utils.quantize_weights(network, bits, mode, lut_function=clusters)
    for name, form in networks.items():
        spec = form.get_spec() if isinstance(form, MLModel) else form
        coremltools.utils.save_spec(spec, str(out / f"{name}.mlmodel"))
    compile_network(out / "network.mlmodel", out / "network.mlmodelc", half=True)


if __name__ == "__main__":
    main()
