"""Trains privately in Accelerate processes: an owner, and data holders whose images and labels never leave them.

The owner's small base is trained on a few images of its own and cut at a named module. The bottleneck and its noise
are calibrated on public images, so that an adversary's reconstructions stay below a stated SSIM. Each data holder then
sends codes, receives logits and returns their gradients. The codes train a student first. The same codes then train
the server part, together with the student's pseudo-labels for the owner's public images. The released model is an
ordinary timm model: copies are issued, and a leaked one is traced. At the end the leakage is measured with and without
the partition.

The script starts its own processes. It also runs under `torchrun` and `accelerate launch`.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from examples._common.owner import RECIPIENT, empty_folder, expect_trace, make_owner_vault
from examples._common.real_inputs import FASHION_MNIST, digits, fashion_mnist, load_model, save_timm
from examples._common.training import accuracy, fine_tune
from hf_fingerprint import Issuer
from hf_fingerprint.keys import new_secret
from hf_fingerprint.privacy import (
    Bottleneck,
    ImageNoise,
    Partition,
    Student,
    calibrate_noise,
    data_holder_loop,
    encode_images,
    init_task_directions,
    measure_membership,
    measure_reconstruction,
    owner_loop,
    release,
    train_decoder,
    train_denoiser,
)


AT, SIZE, NUMBERS = "layer1", (3, 32, 32), 33


def main() -> None:
    """Runs the example; the exit code is 0 if the trace of the leaked copy names alice and nobody else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("private_output"))
    parser.add_argument("--data-holders", type=int, default=2, help="number of data holders")
    parser.add_argument("--images", type=int, default=3000, help="images of the owner, and of each data holder")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training")
    parser.add_argument(
        "--target-ssim", type=float, default=0.4, help="the highest SSIM of an adversary's reconstructions"
    )
    parser.add_argument("--data", choices=["fashion_mnist", "digits"], default=None)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(arguments)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = arguments.data_holders + 1
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    method = "fork" if sys.platform == "linux" else "spawn"  # nothing ran yet, so a fork is safe, and imports once
    torch.multiprocessing.start_processes(run_spawned, (arguments,), nprocs=processes, start_method=method)


def run_spawned(rank: int, arguments: argparse.Namespace) -> None:
    """Sets the environment that torchrun sets, and runs one process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    run_rank(arguments)


def load_share(arguments: argparse.Namespace, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the images and labels of one process: the owner's public ones, or a data holder's."""
    if arguments.data == "digits" or not FASHION_MNIST.is_dir():
        images, labels = digits(SIZE[1])
    else:
        images, labels = fashion_mnist(True, arguments.images * (arguments.data_holders + 2), SIZE[1])
    part = slice(rank * arguments.images, (rank + 1) * arguments.images)
    return images[part], labels[part]


def run_rank(arguments: argparse.Namespace) -> None:
    """Runs one process: the owner or a data holder."""
    accelerator = Accelerator(cpu=True)
    images, labels = load_share(arguments, accelerator.process_index)
    if accelerator.is_main_process:
        prepare(arguments, images, labels)
    accelerator.wait_for_everyone()
    model = load_model(arguments.out / "base")
    partition = Partition(model, AT, SIZE)
    bottleneck = Bottleneck(partition.shape, NUMBERS, flatten_features=True)
    bottleneck.load_state_dict(load_file(arguments.out / "bottleneck.safetensors"))
    if accelerator.is_main_process:
        run_owner(arguments, partition, bottleneck, images, labels)
    else:
        noise = ImageNoise(new_secret())
        for _ in ("student", "server part"):
            data_holder_loop(
                partition, bottleneck, images, labels, noise, arguments.steps, seed=accelerator.process_index
            )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def prepare(arguments: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Trains the owner's base, and calibrates a bottleneck to the stated leakage."""
    empty_folder(arguments.out)
    print("1. The base: a small network, trained on a few of the owner's images\n", flush=True)
    torch.manual_seed(0)
    few = len(images) // 4
    base = timm.create_model("test_resnet", num_classes=10)
    fine_tune(base, images[:few], labels[:few], lr=2e-3, steps=arguments.steps, label="the owner trains the base")
    save_timm(base, arguments.out / "base")
    partition = Partition(base, AT, SIZE)
    features = partition.client_part(images)
    bottleneck = Bottleneck(partition.shape, NUMBERS, flatten_features=True)
    init_task_directions(partition, bottleneck, features)
    found = calibrate_noise(bottleneck, features, images, arguments.target_ssim, arguments.steps)
    save_file(bottleneck.state_dict(), arguments.out / "bottleneck.safetensors")
    print(
        f"  cut at {AT}; noise {found.sigma:.2f}; reconstructions of public images: "
        f"SSIM {found.reconstruction.ssim:.2f} "
        f"(allowed {found.target_ssim}); at most {found.bits_per_image:.0f} bits per image\n"
    )


def run_owner(
    arguments: argparse.Namespace,
    partition: Partition,
    bottleneck: Bottleneck,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Trains the server part, releases the model, issues copies, traces a leaked one, and measures the leakage."""
    test = load_share(arguments, arguments.data_holders + 1)
    print(
        f"2. {arguments.data_holders} data holders train it further and keep their data\n",
        flush=True,
    )
    print(f"  accuracy before: {accuracy(partition.model, *test):.1%}")
    features, few = partition.client_part(images), len(images) // 4
    denoiser = train_denoiser(bottleneck, features, arguments.steps)
    student, loss = Student(bottleneck.code_shape, 10), torch.nn.functional.cross_entropy
    generator = torch.Generator().manual_seed(0)
    bytes_on_wire: dict[str, int] = {}

    def count(direction: str, message: bytes) -> None:
        bytes_on_wire[direction] = bytes_on_wire.get(direction, 0) + len(message)

    def student_loss() -> torch.Tensor:
        pick = torch.randint(few, (32,), generator=generator)
        return loss(student(bottleneck.send(features[pick])), labels[pick])

    def server_loss() -> torch.Tensor:
        pick, any_pick = (torch.randint(size, (32,), generator=generator) for size in (few, len(features)))
        pseudo_label_loss = loss(partition.server_part(features[any_pick]), pseudo_labels[any_pick])
        return pseudo_label_loss + loss(partition.server_part(features[pick]), labels[pick])

    optimizer, steps = torch.optim.AdamW(student.parameters(), 3e-3), arguments.steps
    owner_loop(partition, bottleneck, None, optimizer, steps, student_loss, student=student, on_message=count)
    pseudo_labels = student.pseudo_labels(bottleneck, features)
    optimizer = torch.optim.AdamW(partition.server_parameters().values(), 2e-3)
    owner_loop(partition, bottleneck, denoiser, optimizer, steps, server_loss, on_message=count)
    model = release(partition, features)
    print(f"  accuracy after: {accuracy(model, *test):.1%}")
    print(f"  over the wire: {bytes_on_wire['received']:,} bytes to the owner, {bytes_on_wire['sent']:,} back\n")

    print("3. Copies of the released model are issued, and one leaks\n", flush=True)
    vault = make_owner_vault(save_timm(model, arguments.out / "released"), arguments.out)
    with Issuer(arguments.out / "released", vault) as issuer:
        issuer.issue(RECIPIENT, arguments.out / "copies" / RECIPIENT)
    expect_trace(arguments.out / "copies" / RECIPIENT, arguments.out / "vault")

    print("4. What leaks of the first data holder's images\n", flush=True)
    private = load_share(arguments, 1)
    plain = train_decoder(lambda clear: clear, features, images, arguments.steps)
    noisy = train_decoder(bottleneck.send, features, images, arguments.steps)
    codes = encode_images(partition, bottleneck, private[0], ImageNoise(new_secret()))
    clear = measure_reconstruction(plain, partition.client_part(private[0]), private[0])
    hidden = measure_reconstruction(noisy, codes, private[0])
    print(f"  plain split: PSNR {clear.psnr:.1f} dB, SSIM {clear.ssim:.3f}")
    print(f"  partitioned: PSNR {hidden.psnr:.1f} dB, SSIM {hidden.ssim:.3f}, {hidden.ssim / clear.ssim:.2f} of that")
    seen = min(len(private[1]), len(test[1]))
    membership_result = measure_membership(
        model, (private[0][:seen], private[1][:seen]), (test[0][:seen], test[1][:seen])
    )
    print(f"  membership of the released model: AUC {membership_result.auc:.3f}")


if __name__ == "__main__":
    main()
