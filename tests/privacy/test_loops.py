"""An owner and two data holders in three processes; the tests check every byte between them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy import (
    Bottleneck,
    Denoiser,
    ImageNoise,
    Partition,
    Student,
    data_holder_loop,
    encode_images,
    owner_loop,
)
from hf_fingerprint.privacy.wire import HEADER_BYTES, MessageKind, unpack
from tests.helpers.processes import environment


pytestmark = pytest.mark.integration
SIZE, STEPS, BATCH, COUNT = (3, 32, 32), 5, 8, 20


def parts() -> tuple[Partition, Bottleneck, Denoiser]:
    """What all processes begin with."""
    torch.manual_seed(0)
    partition = Partition(timm.create_model("test_resnet", num_classes=10), "layer1", SIZE)
    bottleneck = Bottleneck(partition.shape, 4, sigma=2.0)
    bottleneck.init_principal_components(partition.client_part(torch.randn(32, *SIZE)))
    return partition, bottleneck, Denoiser(bottleneck, 16).requires_grad_(False).eval()


def data(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A data holder's images and labels."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn((COUNT, *SIZE), generator=generator), torch.randint(10, (COUNT,), generator=generator)


def secret_of(rank: int) -> bytes:
    return bytes([rank]) * 32


def work(folder: Path, *faults: str) -> None:
    """One process, which goes through several trainings; faults are the second data holder's."""
    for fault in faults:
        (folder / fault).mkdir(exist_ok=True)
        train(folder / fault, fault)


def train(folder: Path, fault: str) -> None:
    from accelerate import PartialState

    state = PartialState(cpu=True)
    rank = state.process_index
    partition, bottleneck, denoiser = parts()

    def on_message(direction: str, message: bytes) -> None:
        with (folder / f"{rank}-{direction}.bin").open("ab") as stream:
            stream.write(message)

    try:
        if rank == 0 and fault == "student instead":
            torch.manual_seed(7)
            student = Student(bottleneck.code_shape, 10)
            optimizer = torch.optim.SGD(student.parameters(), 0.1)
            owner_loop(partition, bottleneck, None, optimizer, STEPS, student=student)
            save_file(student.state_dict() | partition.model.state_dict(), folder / "trained.safetensors")
        elif rank == 0:
            optimizer = torch.optim.SGD(partition.server_parameters().values(), 0.1)
            owner_loop(partition, bottleneck, denoiser, optimizer, STEPS, on_message=on_message)
            save_file(partition.model.state_dict(), folder / "trained.safetensors")
        else:
            if rank == 2 and fault == "leaves":
                os._exit(0)
            if rank == 2 and fault == "other bottleneck":
                bottleneck = Bottleneck(partition.shape, 5)
            images, labels = data(rank)
            noise = ImageNoise(secret_of(rank))
            data_holder_loop(partition, bottleneck, images, labels, noise, STEPS, BATCH, rank, on_message=on_message)
        state.wait_for_everyone()
    except FingerprintError as error:
        (folder / f"{rank}.txt").write_text(str(error))
        os._exit(0)


def launch(folder: Path, *faults: str) -> None:
    """Runs three processes to their end; each training leaves its files in the folder of its fault."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = f"work(Path({str(folder)!r}), *{faults!r})"
    script = f"from pathlib import Path; from tests.privacy.test_loops import work; {call}"
    common = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "3"}
    common |= {"ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], "\n".join(said)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folders of three trainings, by their faults; a refusal ends the processes, so it is the last."""
    folder = tmp_path_factory.mktemp("run")
    launch(folder, "none", "student instead", "other bottleneck")
    return folder


@pytest.fixture(scope="module")
def run(launched):
    """The folder of a training that went well."""
    return launched / "none"


def messages(path: Path) -> list[bytes]:
    """A recorded stream, cut into messages by their headers, to the last byte."""
    stream, found = path.read_bytes(), []
    while stream:
        size = int.from_bytes(stream[HEADER_BYTES - 8 : HEADER_BYTES], "little")
        found.append(stream[: HEADER_BYTES + size])
        stream = stream[HEADER_BYTES + size :]
    return found


def test_features_and_their_gradients_cross_and_not_one_byte_else(run):
    _, bottleneck, _ = parts()
    code = (BATCH, *bottleneck.code_shape)
    expected_from_data_holder = [
        (kind, step) for step in range(STEPS) for kind in (MessageKind.FEATURES, MessageKind.GRADIENTS)
    ]

    for rank in (1, 2):
        sent = [unpack(message) for message in messages(run / f"{rank}-sent.bin")]
        came = [unpack(message) for message in messages(run / f"{rank}-received.bin")]

        assert [(kind, step) for kind, step, _ in sent] == expected_from_data_holder
        assert [(kind, step) for kind, step, _ in came] == [(MessageKind.OUTPUTS, step) for step in range(STEPS)]
        assert {tuple(tensor.shape) for kind, _, tensor in sent if kind == MessageKind.FEATURES} == {code}
        assert {tuple(t.shape) for kind, _, t in [*sent, *came] if kind != MessageKind.FEATURES} == {(BATCH, 10)}
        bytes_sent = STEPS * (2 * HEADER_BYTES + 4 * (torch.Size(code).numel() + BATCH * 10))
        assert (run / f"{rank}-sent.bin").stat().st_size == bytes_sent
        assert (run / f"{rank}-received.bin").stat().st_size == STEPS * (HEADER_BYTES + 4 * BATCH * 10)


def test_what_one_side_sent_is_what_the_other_got(run):
    got = messages(run / "0-received.bin")
    from_data_holders = [messages(run / f"{rank}-sent.bin") for rank in (1, 2)]

    assert sorted(got) == sorted([*from_data_holders[0], *from_data_holders[1]])
    assert sorted(messages(run / "0-sent.bin")) == sorted(
        [*messages(run / "1-received.bin"), *messages(run / "2-received.bin")]
    )


def test_each_code_is_the_one_that_its_image_always_gets(run):
    partition, bottleneck, _ = parts()

    for rank in (1, 2):
        images, _ = data(rank)
        noise = ImageNoise(secret_of(rank))
        allowed = {row.numpy().tobytes() for row in encode_images(partition, bottleneck, images, noise)}
        rows = [
            row.numpy().tobytes()
            for kind, _, tensor in map(unpack, messages(run / f"{rank}-sent.bin"))
            if kind == MessageKind.FEATURES
            for row in tensor
        ]
        assert set(rows) <= allowed
        assert len(rows) == STEPS * BATCH > len(set(rows)), "images were sent again, with the same bytes"


def test_no_pixels_no_clear_features_no_labels_no_secret_cross(run):
    partition, bottleneck, _ = parts()

    for rank in (1, 2):
        stream = (run / f"{rank}-sent.bin").read_bytes()
        images, labels = data(rank)
        features = partition.client_part(images)
        for clear in (images, features, bottleneck.encode(features)):
            assert not any(row[:4].numpy().tobytes() in stream for row in clear.flatten(1))
        assert secret_of(rank)[:8] not in stream
        for width in (torch.int64, torch.int32, torch.float32, torch.uint8):
            assert labels[:8].to(width).numpy().tobytes() not in stream


def test_labels_show_in_the_gradients_as_the_documentation_admits(run):
    """Not wanted, but so: a test that failed here would mean that the limit can be taken out of the README."""
    for rank in (1, 2):
        _, labels = data(rank)
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(rank))
        first = next(
            t for kind, _, t in map(unpack, messages(run / f"{rank}-sent.bin")) if kind == MessageKind.GRADIENTS
        )

        assert torch.equal(first.argmin(1), labels[order[:BATCH]])


def test_three_processes_train_what_one_would(run):
    partition, bottleneck, denoiser = parts()
    client_part = {name: tensor.clone() for name, tensor in partition.model.state_dict().items()}
    optimizer = torch.optim.SGD(partition.server_parameters().values(), 0.1)
    codes = {rank: encode_images(partition, bottleneck, data(rank)[0], ImageNoise(secret_of(rank))) for rank in (1, 2)}
    generators = {rank: torch.Generator().manual_seed(rank) for rank in (1, 2)}
    orders = {rank: torch.empty(0, dtype=torch.long) for rank in (1, 2)}
    partition.model.train()
    for _ in range(STEPS):
        picks = {}
        for rank in (1, 2):
            if len(orders[rank]) < BATCH:
                orders[rank] = torch.randperm(COUNT, generator=generators[rank])
            picks[rank], orders[rank] = orders[rank][:BATCH], orders[rank][BATCH:]
        features = denoiser(torch.cat([codes[rank][picks[rank]] for rank in (1, 2)]))
        labels = torch.cat([data(rank)[1][picks[rank]] for rank in (1, 2)])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(partition.server_part(features), labels).backward()
        optimizer.step()

    trained = load_file(run / "trained.safetensors")
    for name, tensor in partition.model.state_dict().items():
        assert torch.allclose(trained[name], tensor, atol=1e-5), name
        assert torch.equal(trained[name], client_part[name]) or name not in partition.client_tensors
    assert not torch.equal(trained["fc.weight"], client_part["fc.weight"])


def test_a_student_learns_instead_of_the_server_part(launched):
    partition, bottleneck, _ = parts()
    torch.manual_seed(7)
    fresh = Student(bottleneck.code_shape, 10).state_dict()

    trained = load_file(launched / "student instead" / "trained.safetensors")
    assert all(torch.equal(trained[name], tensor) for name, tensor in partition.model.state_dict().items())
    assert not any(torch.equal(trained[name], fresh[name]) for name in fresh if name.endswith("weight"))


def test_a_data_holder_that_leaves_is_named(tmp_path):
    launch(tmp_path, "leaves")

    assert (tmp_path / "leaves" / "0.txt").read_text().startswith("The connection to process 2 ended at step 0 (")


def test_data_holders_with_another_bottleneck_are_refused(launched):
    refused = launched / "other bottleneck"

    assert (refused / "0.txt").read_text() == (
        "Process 2 sent features of shape (8, 5, 8, 8) for step 0, expected features of shape (-1, 4, 8, 8) for step "
        "0: start all processes with the same arguments."
    )
    assert not (refused / "trained.safetensors").exists()


def test_with_neither_denoiser_nor_student_nothing_starts():
    partition, bottleneck, _ = parts()
    optimizer = torch.optim.SGD(partition.server_parameters().values(), 0.1)

    with pytest.raises(FingerprintError, match="nothing to train on the codes"):
        owner_loop(partition, bottleneck, None, optimizer, 1)


def test_one_process_alone_is_refused():
    partition, bottleneck, denoiser = parts()
    optimizer = torch.optim.SGD(partition.server_parameters().values(), 0.1)

    for loop in (
        lambda: owner_loop(partition, bottleneck, denoiser, optimizer, 1),
        lambda: data_holder_loop(partition, bottleneck, *data(1), ImageNoise(secret_of(1)), 1),
    ):
        with pytest.raises(FingerprintError, match="needs an owner and data holders"):
            loop()
