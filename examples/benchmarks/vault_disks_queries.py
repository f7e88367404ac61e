"""The black-box commands that `vault_disks.py` runs, and `evaluate`."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pytest import MonkeyPatch

from examples.benchmarks.vault_disks_cases import OLD, Case, Place, opened
from hf_fingerprint import FingerprintConfig, Vault, evaluation, register
from hf_fingerprint.blackbox import check_proof
from hf_fingerprint.blackbox.querying.query import load_trigger_set
from hf_fingerprint.blackbox.querying.transcript import read_transcript
from hf_fingerprint.evaluation import testbed
from tests.helpers.evaluation_runs import save_model_and_images
from tests.helpers.records_with_triggers import CLASSES, SimulatedSuspect, add_copy, add_trigger_set


CONFIG = FingerprintConfig(coalition=2, expected_recipients=4, amplitude=0.003, calibration_images=32)
COUNT, IN_A_SET = 22, 4  # triggers of a base
SUSPECTS = 3  # the base, the issued copy, and the attacked copy


def has_both_proofs(place: Place) -> bool:
    """Returns whether each image has one response, at most one response was lost, and both proofs hold."""
    vault = Vault(place.blackbox / "vault")
    kept = sorted(place.small.glob("responses*"))
    proofs = sorted(place.small.glob("proof*"))
    responses = sum(len(read_transcript(each)[1]) for each in kept)
    pools = [load_trigger_set(vault, base) for base in vault.bases()]
    return (
        len(list(place.small.iterdir())) == 2 * len(pools) == len(kept) + len(proofs)
        and responses == sum(pool.count + pool.decoys for pool in pools)
        and len(place.suspect.seen) - responses in (0, 1)
        and all(proven.holds for proof in proofs for proven in check_proof(proof).accusations)
    )


def key_images_are_complete(place: Place) -> bool:
    """Returns whether the key images are there with their index, and nothing else."""
    listed = json.loads((place.small / "set" / "index.json").read_text())["images"]
    there = {path.name for path in (place.small / "set").iterdir()}
    return [path.name for path in place.small.iterdir()] == ["set"] and there == {
        "index.json",
        *(each["file"] for each in listed),
    }


def is_evaluated(place: Place) -> bool:
    """Returns whether each suspect was measured once, on one copy, and the report is there."""
    out = place.small / "out"
    (vault,) = out.glob("vault-*")
    lines = (out / "private" / "results.jsonl").read_text().splitlines()
    return (
        len(lines) == len({json.loads(line)["key"] for line in lines}) == SUSPECTS
        and len(json.loads((out / "results.json").read_text())["trials"]) == SUSPECTS
        and [copy.state for copy in Vault(vault).copies()] == ["issued"]
        and {path.name for path in out.iterdir()} - {".lock"}
        == {vault.name, "copies", "private", "results.json", "table.md", "report.html"}
    )


CASES = {
    "query": Case(
        lambda place: None,
        "query {0.suspect.url} --vault {0.blackbox}/vault --labels {0.blackbox}/labels --rate 10000 --exhaustive "
        "--transcript {0.small}/responses --proof {0.small}/proof",
        has_both_proofs,
        max_free=64 << 10,
    ),
    "key-images export": Case(
        lambda place: None,
        "key-images export alice --out {0.small}/set --vault {0.blackbox}/set_vault",
        key_images_are_complete,
        max_free=600 << 10,
    ),
    "triggers": Case(
        lambda place: shutil.copytree(place.blackbox / "bare_vault", place.vault),
        "triggers {0.blackbox}/model --vault {0.vault} --images {0.blackbox}/images --count 8 --decoys 1 --steps 1",
        lambda place: load_trigger_set(Vault(place.vault), Vault(place.vault).bases()[0]).count == 8 and opened(place),
        torch=True,
    ),
    "evaluate": Case(
        lambda place: None,
        "evaluate {0.blackbox}/model --data {0.blackbox}/images --out {0.small}/out --attacks half --json",
        is_evaluated,
        max_free=3 << 20,
        torch=True,
    ),
}


def build_blackbox_files(place: Place, with_model: bool) -> None:
    """Makes vaults with trigger sets, a suspect that responds for a recipient of each base, and a model that runs."""
    (place.blackbox / "labels").write_text("\n".join(map(str, range(CLASSES))))
    for name, count, bases in (("vault", COUNT, 2), ("set_vault", IN_A_SET, 1)):
        vault = Vault(shutil.copytree(place.bare_vault, place.blackbox / name))
        vault.unlock(OLD)
        for number in range(bases):
            base = register(str(place.model), vault, CONFIG, remeasure=number > 0)
            add_trigger_set(vault, base, count=count)
            for recipient in ("alice", "bob"):  # with the same assigned triggers each time
                add_copy(vault, base, recipient, key=sha256(f"{recipient} {number}".encode()).digest())
        if bases > 1:
            simulated = [SimulatedSuspect(vault, [base], (base, "alice")) for base in vault.bases()]
            place.suspect.shape = partial(_respond, place, simulated)
    if with_model:
        save_model_and_images(place.blackbox)
        bare = Vault(shutil.copytree(place.bare_vault, place.blackbox / "bare_vault"))
        register(str(place.blackbox / "model"), bare, CONFIG)


def _respond(place: Place, simulated: list[SimulatedSuspect], _red: int) -> int:
    """Returns the label for the last image received."""
    image = np.asarray(Image.open(BytesIO(place.suspect.seen[-1].body)))
    for each in simulated:
        try:
            return int(each(image) or 0)
        except KeyError:
            continue
    raise KeyError("an image that is no trigger")


@contextmanager
def on_one_core(patches: MonkeyPatch) -> Iterator[None]:
    """Runs models in one thread, as a forked process must, and shortens evaluations."""
    import torch

    evaluate, read, threads = evaluation.evaluate, testbed.extract, torch.get_num_threads()

    def quick_evaluate(*arguments: Any, **options: Any) -> evaluation.Evaluation:
        return evaluate(*arguments, **options | {"config": CONFIG, "innocents": 50})

    patches.setattr(evaluation, "evaluate", quick_evaluate)
    patches.setattr(testbed, "extract", partial(read, aligned=False))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
