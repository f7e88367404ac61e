"""Traces stolen copies behind an API that returns labels only.

The owner trains a classifier, makes its trigger set, and issues copies. One recipient's copy is fine-tuned by an
attacker, and another's is quantized to 8 bits. A third service runs an independent model of the same architecture. A
separate process serves the three models over HTTP on loopback: it receives a PNG and returns the name of a class. The
owner queries each service with rate limit and retries, names the leakers with a bound, and writes proofs that anyone
can check with nothing but the file.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from examples._common.owner import CONFIG, PASSPHRASE, empty_folder
from examples._common.real_inputs import FASHION_MNIST, digits, fashion_mnist, lite0, load_model
from examples._common.training import accuracy, fine_tune, predict
from hf_fingerprint import Issuer, QueryResult, Vault, make_trigger_set, query, register
from hf_fingerprint.attacks import Quantization
from hf_fingerprint.blackbox import Labels, RetryPolicy, check_proof, from_url, write_proof
from hf_fingerprint.blackbox.trigger_set.build import COUNT, DECOYS, STEPS
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.cli.output import echo_err
from hf_fingerprint.models import build_model
from hf_fingerprint.outcomes import Outcome


NAMES = {
    "fashion_mnist": "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
    "digits": "zero,one,two,three,four,five,six,seven,eight,nine",
}
FINE_TUNED, QUANTIZED, STRANGER = "alice", "bob", "nobody"
RECIPIENTS = [FINE_TUNED, QUANTIZED, "carol", "dave", "erin"]


def main() -> None:
    """Runs the example; the exit code is 0 if each copy is traced to its recipient, and the third model to nobody."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("api_output"))
    parser.add_argument("--model", default="lite0", help="lite0 (with its ImageNet weights) or a timm architecture")
    parser.add_argument("--data", choices=[*NAMES], default="fashion_mnist" if FASHION_MNIST.is_dir() else "digits")
    parser.add_argument("--size", type=int, default=64, help="height and width of the model's input")
    parser.add_argument(
        "--steps", type=int, default=200, help="steps of the owner's training; the attacker takes a quarter"
    )
    parser.add_argument("--attacker-lr", type=float, default=1e-4, help="the attacker's learning rate")
    parser.add_argument("--count", type=int, default=COUNT, help="number of trigger images")
    parser.add_argument("--decoys", type=int, default=DECOYS, help="number of decoys")
    parser.add_argument("--trigger-steps", type=int, default=STEPS, help="optimization steps of the trigger images")
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second")
    parser.add_argument("--serve", type=Path, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    out = empty_folder(arguments.out)
    train, test = data(arguments)
    owner_data, attacker_data = split_between_owner_and_attacker(*train)

    print(f"1. The base: {arguments.model}, trained on {arguments.data}, with a trigger set\n", flush=True)
    base = train_classifier(arguments, *owner_data, seed=0, label="the owner trains the base")
    folder = save(base, out / "base", arguments)
    vault = Vault.create(out / "vault", PASSPHRASE)
    register(folder, vault, CONFIG)
    print(f"  accuracy {accuracy(base, *test):.1%}; the trigger images take longest to optimize", flush=True)
    cover_images = write_images(owner_data[0][:1000], out / "cover images")
    trigger_set = make_trigger_set(
        folder, vault, cover_images, arguments.count, arguments.decoys, steps=arguments.trigger_steps
    )
    print(f"  {trigger_set.count} trigger images, {trigger_set.decoys} decoys")

    print("\n2. A copy for each recipient; nothing is trained\n", flush=True)
    predicted = predict(base, test[0])
    with Issuer(folder, vault, CONFIG) as issuer:
        for copy in issuer.issue_all(RECIPIENTS, out / "copies"):
            model = load_model(copy.path)
            same = float((predict(model, test[0]) == predicted).double().mean())
            print(f"  {copy.recipient}: accuracy {accuracy(model, *test):.1%}, {same:.1%} of the base's labels")

    print("\n3. Two copies leak; an independent model is served too\n", flush=True)
    suspects = make_suspects(arguments, out, attacker_data)
    for name, suspect in suspects.items():
        print(f"  {name}'s: accuracy {accuracy(load_model(suspect), *test):.1%}")

    print("\n4. The owner queries the three services")
    vault.unlock(PASSPHRASE)
    with service(list(suspects.values())) as addresses:
        found = {
            name: query_service(arguments, url, vault, name) for name, url in zip(suspects, addresses, strict=True)
        }

    print("\n5. Anyone can check the proofs, with the files and the published commitments\n")
    published = [copy.commitment for copy in vault.copies() if copy.recipient in (FINE_TUNED, QUANTIZED)]
    for path in sorted(out.glob("*.proof.json")):
        print(check_proof(path, published))

    expected = {name: [] if name == STRANGER else [name] for name in suspects}
    accused = {name: [score.recipient for score in result.accused] for name, result in found.items()}
    checked = [each for path in sorted(out.glob("*.proof.json")) for each in check_proof(path, published).accusations]
    verified_names = [each.recipient for each in checked if each.outcome is Outcome.ACCUSED]
    if accused != expected or verified_names != [FINE_TUNED, QUANTIZED]:
        echo_err(f"The example expected {expected} and found {accused}, proven: {verified_names}.")
        sys.exit(1)


def query_service(arguments: argparse.Namespace, url: str, vault: Vault, name: str) -> QueryResult:
    """Queries one service, prints the result, and writes a proof if a recipient is accused."""
    print(f"\n--- {url}\n", flush=True)
    transcript, proof = (arguments.out / f"{name}.{kind}" for kind in ("transcript", "proof.json"))
    suspect = from_url(url, Labels(NAMES[arguments.data].split(",")), retry_policy=RetryPolicy(arguments.rate))
    result = query(suspect, vault, transcript=transcript)
    print(result)
    if result.accused:
        write_proof(proof, transcript, result, vault)
    return result


def make_suspects(
    arguments: argparse.Namespace, out: Path, data: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, Path]:
    """Returns what the services run: a fine-tuned copy, a copy in 8 bits, and an independent model."""
    fine_tuned = load_model(out / "copies" / FINE_TUNED)
    fine_tune(
        fine_tuned,
        *data,
        lr=arguments.attacker_lr,
        steps=arguments.steps // 4,
        batch=32,
        seed=1,
        label="the attacker fine-tunes",
    )
    quantized = load_model(out / "copies" / QUANTIZED)
    quantized.load_state_dict(Quantization(bits=8)(quantized.state_dict()))
    stranger = train_classifier(arguments, *data, seed=2, label="an independent model")
    models = {FINE_TUNED: fine_tuned, QUANTIZED: quantized, STRANGER: stranger}
    return {name: save(model, out / "served" / name, arguments) for name, model in models.items()}


def train_classifier(
    arguments: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor, seed: int, label: str
) -> torch.nn.Module:
    """Returns a classifier of ten classes, trained from ImageNet weights if `lite0` is chosen."""
    torch.manual_seed(seed)
    model = lite0() if arguments.model == "lite0" else timm.create_model(arguments.model)
    model.reset_classifier(10)
    return fine_tune(model, images, labels, lr=2e-3, steps=arguments.steps, batch=32, seed=seed, label=label)


def save(model: torch.nn.Module, folder: Path, arguments: argparse.Namespace) -> Path:
    """Saves a model as a folder, with its input size and class names."""
    half, size = (0.5, 0.5, 0.5), (3, arguments.size, arguments.size)
    model.pretrained_cfg = model.pretrained_cfg | {"input_size": size, "crop_pct": 1.0, "mean": half, "std": half}
    names = {"label_names": NAMES[arguments.data].split(",")}
    save_for_hf(model, folder, model_config=names, safe_serialization=True)
    return folder


def data(
    arguments: argparse.Namespace,
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Returns `(images, labels)` to train and to test on."""
    if arguments.data == "digits":
        images, labels = digits(arguments.size)
        return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])
    return fashion_mnist(True, 8000, arguments.size), fashion_mnist(False, 2000, arguments.size)


def split_between_owner_and_attacker(
    images: torch.Tensor, labels: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Returns one half of the data for the owner and the other for the attacker."""
    return tuple((images[start::2], labels[start::2]) for start in (0, 1))


def write_images(images: torch.Tensor, folder: Path) -> Path:
    """Writes unlabeled images as PNG files: the copies must keep the base's labels on images like these."""
    folder.mkdir()
    for index, image in enumerate(((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{index:04}.png")
    return folder


@contextmanager
def service(folders: list[Path]) -> Iterator[list[str]]:
    """Serves models from a separate process, and yields their URLs."""
    command = [sys.executable, "-m", "examples.api_tracing", "--serve", *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def serve(folders: list[Path]) -> None:
    """Serves models on loopback, each at its own URL: receives a PNG, returns the name of a class."""
    torch.set_num_threads(1)
    models = {}
    for number, folder in enumerate(folders, 1):
        with open_checkpoint(folder) as checkpoint:
            names = json.loads((folder / "config.json").read_text())["label_names"]
            models[f"/service-{number}"] = build_model(checkpoint), names

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def do_POST(self) -> None:
            picture = self.rfile.read(int(self.headers["Content-Length"]))
            model, names = models[self.path]
            with Image.open(BytesIO(picture)) as image, torch.inference_mode():
                predicted = int(model.module(model.preprocess(image.convert("RGB"))[None]).argmax())
            body = json.dumps({"label": names[predicted]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Logs nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(json.dumps([f"http://127.0.0.1:{server.server_port}{path}" for path in models]), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
