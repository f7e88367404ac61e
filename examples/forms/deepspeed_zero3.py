"""Makes the checkpoint that DeepSpeed saves of a timm model in training with ZeRO stage 3, on the CPUs.

    pip install -r examples/forms/deepspeed_zero3.txt
    python examples/forms/deepspeed_zero3.py MODEL_FOLDER OUT_FOLDER

MODEL_FOLDER holds config.json and model.safetensors, as timm saves them. DeepSpeed compiles an operator at first,
which takes minutes. Weights are in bfloat16, and their float32 masters are in the files of two ranks.
"""

import json
import os
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file


CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "bf16": {"enabled": True},
    "zero_allow_untested_optimizer": True,
}
RANKS = 2


def save(rank: int, folder: Path, out: Path) -> None:
    """Saves a checkpoint, in one process of two."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29617", RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(RANKS), DS_ACCELERATOR="cpu")
    import deepspeed

    config = json.loads((folder / "config.json").read_text())
    arguments = config.get("model_args", {})
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **arguments)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    deepspeed.init_distributed("gloo")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    engine.save_checkpoint(out, tag="zero3")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(save, args=(Path(sys.argv[1]), Path(sys.argv[2])), nprocs=RANKS)
