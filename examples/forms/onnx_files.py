"""A timm model as ONNX files: exported, simplified, optimized for a processor, and quantized in each public way.

pip install -r examples/forms/onnx_files.txt
python examples/forms/onnx_files.py MODEL_FOLDER OUT_FOLDER

PyTorch's two exporters (the new one also with external data), onnxsim, float16, onnxruntime's three levels of
optimization ("all" puts convolutions into blocks), int8 with dynamic scales, as QDQ and as QOperator, and for models
with matrix products: MatMulNBits of 2, 4 and 8 bits, int4 tensors in blocks, fp4 and nf4.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxconverter_common import float16
from onnxruntime import GraphOptimizationLevel, SessionOptions
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    matmul_bnb4_quantizer,
    matmul_nbits_quantizer,
    quantize_dynamic,
    quantize_static,
)
from onnxsim import simplify
from safetensors.torch import load_file


LEVELS = {
    "basic": GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def load_model(folder: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """The classifier in a folder, and an input for it."""
    config = json.loads((folder / "config.json").read_text())
    arguments = config.get("model_args", {})
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **arguments)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    torch.manual_seed(0)
    return model.eval(), torch.randn(1, *config["pretrained_cfg"]["input_size"])


class Noise(CalibrationDataReader):
    """A few random images to calibrate activations with."""

    def __init__(self, name: str, image: torch.Tensor):
        draw = np.random.default_rng(0)
        self._left = [{name: draw.normal(size=image.shape).astype(np.float32)} for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def optimize(model: Path, level: str, out: Path) -> None:
    """Saves a model as onnxruntime optimizes it for this processor."""
    options = SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def four_bits(model: Path, out: Path, bits: int = 4, block: int = 32, symmetric: bool = True) -> None:
    """Saves a model with weights of few bits in MatMulNBits, as repos for transformers.js hold them."""
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(model), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)


def blocks_of_int4(model: Path, out: Path) -> None:
    """Saves a model with int4 tensors of opset 21, in blocks, each with a DequantizeLinear."""
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(model), bits=4, block_size=32, is_symmetric=False, quant_format=QuantFormat.QDQ
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)


def four_bit_floats(model: Path, kind: int, out: Path) -> None:
    """Saves a model with weights in fp4 (kind 0) or nf4 (1)."""
    quantizer = matmul_bnb4_quantizer.MatMulBnb4Quantizer(onnx.load(model), kind, 64)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)


def main() -> None:
    """Makes all forms."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    model, image = load_model(source)
    legacy = out / "legacy.onnx"
    with torch.no_grad():
        torch.onnx.export(model, (image,), str(legacy), dynamo=False, opset_version=17, input_names=["image"])
        program = torch.onnx.export(model, (image,), dynamo=True, opset_version=21, input_names=["image"])
    ClearMetadataAndDocStringPass()(program.model)  # the exporter's notes on each node
    program.save(out / "dynamo.onnx", external_data=False)
    program.save(out / "external.onnx", external_data=True)
    graph = onnx.load(legacy)
    onnx.save(simplify(graph)[0], out / "simplified.onnx")
    onnx.save(float16.convert_float_to_float16(graph), out / "fp16.onnx")
    for level in LEVELS:
        optimize(legacy, level, out / f"optimized_{level}.onnx")
    quantize_dynamic(legacy, out / "int8_dynamic.onnx", weight_type=QuantType.QInt8)
    quantize_dynamic(legacy, out / "uint8_dynamic.onnx", weight_type=QuantType.QUInt8, per_channel=True)
    for name, form, by_channel, kind in (
        ("int8_qdq", QuantFormat.QDQ, True, QuantType.QInt8),
        ("int8_qoperator", QuantFormat.QOperator, True, QuantType.QInt8),
        ("uint8_qoperator", QuantFormat.QOperator, False, QuantType.QUInt8),
    ):
        reader = Noise("image", image)
        quantize_static(
            legacy,
            out / f"{name}.onnx",
            reader,
            quant_format=form,
            per_channel=by_channel,
            weight_type=kind,
            activation_type=kind,
        )
    optimize(out / "int8_qdq.onnx", "all", out / "int8_qdq_optimized.onnx")
    optimize(out / "int8_dynamic.onnx", "all", out / "int8_dynamic_optimized.onnx")
    if not any(node.op_type == "MatMul" for node in graph.graph.node):
        return  # these quantizers change nothing else
    four_bits(legacy, out / "q4.onnx")
    four_bits(legacy, out / "q4_zeros.onnx", symmetric=False)
    four_bits(legacy, out / "q8.onnx", bits=8)
    four_bits(legacy, out / "q2.onnx", bits=2, block=16, symmetric=False)
    blocks_of_int4(out / "dynamo.onnx", out / "int4_qdq.onnx")
    four_bit_floats(legacy, 0, out / "fp4.onnx")
    four_bit_floats(legacy, 1, out / "nf4.onnx")


if __name__ == "__main__":
    main()
