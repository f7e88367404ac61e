import json
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from hf_fingerprint import Issuer, TraceResult, trace
from hf_fingerprint.attacks import ChannelPermutation, RowRescaling
from hf_fingerprint.checkpoints import RangedCheckpoint
from hf_fingerprint.errors import CheckpointError, FingerprintError, VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing import verify
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault.merging import merge
from hf_fingerprint.vault.snapshots import read_snapshot
from tests.helpers.error_checks import refused
from tests.helpers.loopback_hub import Fault, LoopbackHub
from tests.helpers.pruned_channels import remove_channels
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, plain_arrays, save_plain, save_timm, unlocked_vault


pytestmark = pytest.mark.integration
NAMES = ("alice", "bob", "carol")
Arrays = dict[str, np.ndarray]


def wide_arrays(seed: int = 0, blocks: int = 2, width: int = 384) -> Arrays:
    """The shapes of a transformer of ViT-S's width: 3.5 M marked weights, 14 MB."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)

    arrays = {"patch_embed.proj.weight": weights(width, 3, 8, 8), "pos_embed": weights(1, 65, width)}
    for i in range(blocks):
        arrays |= {
            f"blocks.{i}.norm1.weight": weights(width),
            f"blocks.{i}.attn.qkv.weight": weights(3 * width, width),
            f"blocks.{i}.attn.qkv.bias": weights(3 * width),
            f"blocks.{i}.attn.proj.weight": weights(width, width),
            f"blocks.{i}.mlp.fc1.weight": weights(4 * width, width),
            f"blocks.{i}.mlp.fc1.bias": weights(4 * width),
            f"blocks.{i}.mlp.fc2.weight": weights(width, 4 * width),
        }
    return arrays | {"head.weight": weights(10, width), "head.bias": weights(10)}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Copies of a wide model, and the vault, unlocked."""
    root = tmp_path_factory.mktemp("wide")
    vault, model = unlocked_vault(root / "vault"), save_plain(root / "model", wide_arrays())
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = {c.recipient: load_file(c.path / "model.safetensors") for c in issuer.issue_all(NAMES, root / "out")}
        return SimpleNamespace(vault=vault, copies=copies, own=wide_arrays(), base=issuer.base, model=model)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same of a model that one look reads whole."""
    root = tmp_path_factory.mktemp("small")
    vault, model = unlocked_vault(root / "vault"), save_plain(root / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = {c.recipient: load_file(c.path / "model.safetensors") for c in issuer.issue_all(NAMES, root / "out")}
        return SimpleNamespace(vault=vault, copies=copies, own=plain_arrays(), base=issuer.base, model=model)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub on 127.0.0.1 that the real client talks to, with an empty cache; nobody waits between two tries."""
    monkeypatch.setattr("hf_fingerprint.checkpoints.ranged_files.FIRST_WAIT", 0)
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        yield server


def put(hub: LoopbackHub, arrays: Arrays, name: str = "org/suspect", **options: object) -> str:
    hub.add(name, {"model.safetensors": save(arrays), "config.json": b"{}"}, **{"lfs": True, **options})
    return name


def names(result: TraceResult) -> list[str]:
    return [score.recipient for score in result.accused]


def quantized(arrays: Arrays, bits: int = 8) -> Arrays:
    def one(array: np.ndarray) -> np.ndarray:
        if array.ndim < 2 or array.dtype != np.float32 or not array.size:
            return array
        step = np.abs(array).max() / (2 ** (bits - 1) - 1)
        return (np.round(array / step) * step).astype(np.float32)

    return {name: one(array) for name, array in arrays.items()}


def drifted(arrays: Arrays, share: float, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        n: (a + share * a.std() * rng.standard_normal(a.shape)).astype(np.float32) if a.ndim > 1 and a.size else a
        for n, a in arrays.items()
    }


def everything_by_ranges(hub: LoopbackHub) -> bool:
    return all(call.method != "HEAD" for call in hub.calls)


def test_a_verbatim_copy_is_named_from_a_tenth_of_the_file(wide, hub):
    suspect = put(hub, wide.copies["bob"])

    result = trace(suspect, wide.vault)

    assert names(result) == ["bob"]
    assert result.revision == hub.repos[suspect].refs["main"]
    assert result.suspect == suspect
    assert (result.looks, result.complete) == (1, False)
    assert result.requests == len(hub.calls) <= 5
    assert result.bytes_total == len(save(wide.copies["bob"])) > 14e6
    assert result.bytes_fetched < 0.09 * result.bytes_total
    assert result.accused[0].log10_false_accusation < -1000
    assert result.weights_read < 300_000
    assert everything_by_ranges(hub)
    assert json.loads(json.dumps(result.to_dict()))["bytes_fetched"] == result.bytes_fetched


TREATMENTS = {
    "8 bits": quantized,
    "6 bits": lambda arrays: quantized(arrays, 6),
    "drift of 2 %": lambda arrays: drifted(arrays, 0.02),
    "drift of 10 %": lambda arrays: drifted(arrays, 0.1),
    "half precision": lambda a: {n: x.astype(np.float16) if x.dtype == np.float32 else x for n, x in a.items()},
    "prefix": lambda a: {f"module.{n}": x for n, x in a.items()},
    "new head": lambda a: a | {"head.weight": np.ones((37, 384), np.float32)},
}


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_a_copy_that_was_worked_on_is_named_from_a_fifth_of_the_file(wide, hub, treatment):
    suspect = put(hub, TREATMENTS[treatment](wide.copies["carol"]))

    result = trace(suspect, wide.vault)

    assert names(result) == ["carol"]
    assert result.bytes_fetched <= 0.2 * result.bytes_total
    assert result.requests <= 10


def test_the_more_a_copy_drifted_the_further_it_is_read(wide, hub):
    looks = []
    for i, share in enumerate((0.0, 0.3, 2.0)):
        result = trace(put(hub, drifted(wide.copies["alice"], share), f"org/drift{i}"), wide.vault)
        assert names(result) == (["alice"] if i < 2 else [])
        looks.append(result.looks)

    assert looks == sorted(looks)
    assert looks[0] == 1
    assert looks[2] in (6, 7)  # the last one whole: perhaps it was turned, a little or far


def test_a_suspect_whose_channels_were_moved_and_rescaled_is_downloaded_and_named(tmp_path, hub):
    model, vault = save_timm(tmp_path / "model", "test_resnet", num_classes=10), unlocked_vault(tmp_path / "vault")
    with Issuer(model, vault, SETTINGS) as issuer:
        copy = issuer.issue("alice", tmp_path / "copy")
    moved = RowRescaling(2.0)(ChannelPermutation()(load_torch(copy.path / "model.safetensors")))
    save_torch({name: tensor.contiguous() for name, tensor in moved.items()}, tmp_path / "moved.safetensors")

    result = trace(put(hub, load_file(tmp_path / "moved.safetensors"), "org/moved"), vault)

    assert names(result) == ["alice"]


def test_a_suspect_whose_channels_were_pruned_away_is_downloaded_and_named(small, hub):
    pruned = put(hub, remove_channels(small.copies["alice"], 0.25))

    limited = trace(pruned, small.vault, max_bytes=100_000)
    assert (names(limited), limited.outcome) == ([], Outcome.NOT_READABLE)
    assert names(trace(pruned, small.vault)) == ["alice"]


def test_a_suspect_that_proves_nothing_is_read_to_the_end(wide, hub):
    result = trace(put(hub, drifted(wide.own, 0.01)), wide.vault)

    assert names(result) == []
    assert result.complete
    assert result.lineage.descends
    assert result.weights_read + result.weights_dropped == wide.base.carrier_weights
    assert result.looks == 5
    assert 0.9 < result.bytes_fetched / result.bytes_total < 1
    assert everything_by_ranges(hub)


def test_read_to_the_end_a_suspect_scores_as_if_it_were_downloaded(wide, hub, monkeypatch):
    suspect = put(hub, drifted(wide.copies["alice"], 0.3))
    full = trace(suspect, wide.vault, full=True)
    assert (full.looks, full.complete, full.bytes_fetched, full.requests) == (1, True, 0, 0)
    hub.add("org/again", {"model.safetensors": save(drifted(wide.copies["alice"], 0.3))}, lfs=True)
    monkeypatch.setattr("hf_fingerprint.extraction.looks.FIRST_LOOK_WEIGHTS", 1 << 30)

    ranged = trace("org/again", wide.vault)

    assert ranged.complete
    assert [s.recipient for s in ranged.scores] == [s.recipient for s in full.scores]
    for one, two in zip(ranged.scores, full.scores, strict=True):
        assert one.score == pytest.approx(two.score, abs=0.02)
    assert ranged.lineage.cosine == pytest.approx(full.lineage.cosine, rel=1e-6)
    assert (ranged.weights_read, ranged.weights_dropped) == (full.weights_read, full.weights_dropped)


def test_a_budget_ends_the_reading(wide, hub):
    suspect = put(hub, wide.own)

    result = trace(suspect, wide.vault, max_bytes=3_000_000)

    assert names(result) == []
    assert not result.complete
    assert 2_900_000 < result.bytes_fetched <= 3_000_000
    assert names(trace(put(hub, wide.copies["bob"], "org/bob"), wide.vault, max_bytes=400_000)) == ["bob"]


def test_whole_finds_further_colluders(wide, hub):
    """Bob's part comes first in the order, and alice's later."""
    mixed = {n: wide.copies["bob" if "fc" in n else "alice"][n] for n in wide.own}
    suspect = put(hub, mixed)

    assert names(trace(suspect, wide.vault)) == ["bob"]
    assert sorted(names(trace(suspect, wide.vault, full=True))) == ["alice", "bob"]


def test_innocent_suspects_accuse_nobody(small, hub):
    for seed in range(25):
        arrays = drifted(small.own, 0.003, seed) if seed % 2 else plain_arrays(seed + 1)
        assert names(trace(put(hub, arrays, f"org/innocent{seed}"), small.vault)) == []


def test_copies_of_another_vault_accuse_nobody(wide, hub, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    with Issuer(wide.model, vault, PLAIN_SETTINGS) as issuer:
        stranger = load_file(issuer.issue("mallory", tmp_path / "copy").path / "model.safetensors")

    result = trace(put(hub, stranger), wide.vault)

    assert names(result) == []
    assert result.complete


@pytest.mark.parametrize("how", ["ranges refused", "pickled", "cached"])
def test_what_cannot_be_read_by_ranges_is_downloaded(small, hub, tmp_path, how):
    suspect = put(hub, small.copies["alice"])
    if how == "ranges refused":
        hub.repos[suspect].ranges = False
    elif how == "pickled":
        import torch

        torch.save({n: torch.from_numpy(a) for n, a in small.copies["alice"].items()}, tmp_path / "x.bin")
        hub.add(suspect, {"pytorch_model.bin": (tmp_path / "x.bin").read_bytes()}, lfs=True)
    else:
        trace(suspect, small.vault, full=True)
        hub.calls.clear()

    result = trace(suspect, small.vault)

    assert names(result) == ["alice"]
    assert (result.looks, result.bytes_fetched, result.bytes_total, result.requests) == (1, 0, 0, 0)
    assert result.complete
    assert result.revision == hub.repos[suspect].refs["main"]
    assert how != "cached" or not hub.downloads()


def test_a_sharded_suspect_is_read_by_ranges(wide, hub):
    copy = wide.copies["carol"]
    shards = {f"model-{i}.safetensors": {n: a for n, a in copy.items() if (f"blocks.{i}" in n)} for i in range(2)}
    shards["model-2.safetensors"] = {n: a for n, a in copy.items() if "blocks" not in n}
    index = {"weight_map": {n: shard for shard, part in shards.items() for n in part}}
    files = {shard: save(part) for shard, part in shards.items()}
    hub.add("org/sharded", files | {"model.safetensors.index.json": json.dumps(index).encode()}, lfs=True)

    result = trace("org/sharded", wide.vault)

    assert names(result) == ["carol"]
    assert result.requests == len(hub.calls) <= 10
    assert result.bytes_total == sum(map(len, files.values()))
    assert result.bytes_fetched < 0.1 * result.bytes_total + len(json.dumps(index))


def test_a_revision_is_traced_and_reported(small, hub):
    repo = hub.repos[put(hub, small.copies["alice"])]
    old = repo.refs["main"]
    repo.tag("v1")
    repo.commit({"model.safetensors": save(small.copies["bob"])}, lfs=True)

    assert names(trace("org/suspect@v1", small.vault)) == ["alice"]
    assert trace("hf-hub:org/suspect@v1", small.vault).revision == old
    assert names(trace("org/suspect", small.vault)) == ["bob"]


def test_a_renamed_suspect_is_reported_under_its_new_name(small, hub):
    put(hub, small.copies["alice"], "org/new")
    hub.moved["model", "org/old"] = "org/new"

    result = trace("org/old", small.vault)

    assert names(result) == ["alice"]
    assert result.suspect == "org/new"


def test_a_private_suspect_opens_to_the_token(small, hub, monkeypatch):
    suspect = put(hub, small.copies["alice"], private=True)
    assert suspect in refused(trace, suspect, small.vault, error=CheckpointError)
    hub.account("reader", orgs=["org"], token="hf_reader")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")

    assert names(trace(suspect, small.vault)) == ["alice"]


@pytest.mark.parametrize(("name", "said"), [("org/deleted", "not on the Hub"), ("org/gated", "ask for access")])
def test_what_the_hub_refuses_accuses_nobody(small, hub, name, said):
    put(hub, small.copies["alice"], "org/gated", gated=True)

    assert said in refused(trace, name, small.vault, error=CheckpointError)


@pytest.mark.parametrize("kind", ["cut within", "cut before", "status"])
def test_a_connection_that_is_cut_now_and_then_changes_nothing(wide, hub, kind):
    suspect = put(hub, drifted(wide.own, 0.01))
    quiet = trace(suspect, wide.vault)
    before = len(hub.calls)
    hub.faults += [Fault(request=before + number, kind=kind) for number in (1, 4, 5, 8, 9, 13)]

    loud = trace(suspect, wide.vault)

    assert loud.scores == quiet.scores
    assert len(hub.calls) - before > 13


def swapped(arrays: Arrays) -> Arrays:
    return {
        n.replace("blocks.0", "x").replace("blocks.3", "blocks.0").replace("x", "blocks.3"): a
        for n, a in arrays.items()
    }


def renamed(arrays: Arrays) -> Arrays:
    return {f"tensor{i}": a for i, a in enumerate(arrays.values())}


def with_decoys(arrays: Arrays) -> Arrays:
    rng = np.random.default_rng(0)
    return arrays | {f"module.{n}": rng.standard_normal(a.shape).astype(np.float32) for n, a in arrays.items()}


def given_each_others_names(arrays: Arrays) -> Arrays:
    """Every marked tensor goes by another's name."""
    found, shapes = dict(arrays), {}
    for name, array in arrays.items():
        shapes.setdefault(array.shape, []).append(name)
    for names in shapes.values():
        found |= {name: arrays[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}
    return found


@pytest.mark.parametrize("disguise", [swapped, renamed, with_decoys, given_each_others_names])
def test_names_that_mislead_do_not_hide_a_copy(small, hub, disguise):
    assert names(trace(put(hub, disguise(small.copies["carol"])), small.vault)) == ["carol"]


def test_a_suspect_without_the_tensors_that_come_first_is_read_on(wide, hub):
    copy = {n: a for n, a in wide.copies["alice"].items() if "mlp" not in n}

    result = trace(put(hub, copy), wide.vault)

    assert names(result) == ["alice"]
    assert result.looks > 1
    assert (result.tensors_matched, result.tensors_marked) == (4, 8)
    assert everything_by_ranges(hub)


def test_the_whole_after_a_look_pays_for_that_look(small, hub):
    unlike = {"conv.weight": np.ones((48, 48, 3, 3), np.float32)}  # the one tensor of its shape, and so of its name
    suspect = put(hub, given_each_others_names(small.copies["carol"]) | unlike)

    result = trace(suspect, small.vault)

    assert (result.looks, result.complete, result.bytes_fetched) == (2, True, 0)
    alone = trace(suspect, small.vault, full=True)
    difference = result.accused[0].log10_false_accusation - alone.accused[0].log10_false_accusation
    assert difference == pytest.approx(math.log10(6), abs=0.35)


# claims


def test_a_claim_is_tested_alone(small, hub):
    suspect = put(hub, small.copies["alice"])

    yes, no = (verify(suspect, name, small.vault, all_scores=True) for name in ("alice", "bob"))

    assert names(yes) == ["alice"]
    assert names(no) == []
    assert [score.recipient for score in (*yes.scores, *no.scores)] == ["alice", "bob"]
    assert (yes.recipients_tested, no.recipients_tested) == (1, 1)
    assert (yes.recipients_covered, no.recipients_covered) == (3, 3)
    among_all = trace(suspect, small.vault).accused[0].log10_false_accusation
    assert yes.accused[0].log10_false_accusation == pytest.approx(among_all, abs=0.01)


def test_a_claim_works_on_a_local_file_too(small, tmp_path):
    save_file(small.copies["bob"], tmp_path / "suspect.safetensors")

    assert names(verify(tmp_path / "suspect.safetensors", "bob", small.vault)) == ["bob"]
    assert names(trace(tmp_path / "suspect.safetensors", small.vault, recipient="alice")) == []


def test_a_claim_about_a_recipient_without_a_copy_is_an_error_before_anything_is_fetched(small, hub):
    suspect = put(hub, small.copies["alice"])

    assert "zoe" in refused(verify, suspect, "zoe", small.vault, error=VaultError)
    assert hub.calls == []


def test_a_claim_about_a_copy_of_another_base_is_an_error(hub, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    one, two = save_plain(tmp_path / "one"), save_plain(tmp_path / "two", plain_arrays(1))
    with Issuer(one, vault, PLAIN_SETTINGS) as issuer:
        arrays = load_file(issuer.issue("alice", tmp_path / "a").path / "model.safetensors")
    with Issuer(two, vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("bob", tmp_path / "b")

    text = refused(verify, put(hub, arrays), "bob", vault, error=VaultError)

    assert "for bob" in text
    assert "--base" in text


# several bases


def test_of_two_bases_of_one_architecture_the_likelier_is_read(hub, tmp_path):
    vault, copies = unlocked_vault(tmp_path / "vault"), {}
    for seed, name in enumerate(("alice", "bob")):
        with Issuer(save_plain(tmp_path / str(seed), plain_arrays(seed)), vault, PLAIN_SETTINGS) as issuer:
            copies[name] = load_file(issuer.issue(name, tmp_path / name).path / "model.safetensors")

    for name, arrays in copies.items():
        result = trace(put(hub, arrays, f"org/{name}"), vault)
        assert names(result) == [name]
        assert result.bytes_total
        assert result.base == vault.copies(recipient=name)[0].base_id
    (tmp_path / "0" / "model.safetensors").unlink()
    assert names(trace("org/bob", vault)) == ["bob"]
    assert "is needed to read a suspect" in refused(trace, "org/alice", vault, error=VaultError)


@pytest.fixture
def merged(tmp_path):
    """One model registered by two issuers apart, each with a secret and recipients of its own, in one vault."""
    model, copies, bases = save_plain(tmp_path / "model"), {}, []
    first = unlocked_vault(tmp_path / "vault0")
    second = Vault.create(tmp_path / "vault1", public_key=first.public_key)
    for vault, people in ((first, ("alice", "bob")), (second, ("carol",))):
        with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
            for person in people:
                copies[person] = load_file(issuer.issue(person, tmp_path / person).path / "model.safetensors")
            bases.append(issuer.base)
    with second.connect() as connection:
        merge(first, read_snapshot(connection))
    assert bases[0].content_hash == bases[1].content_hash
    assert bases[0].base_id != bases[1].base_id
    return SimpleNamespace(vault=first, copies=copies, bases=bases, model=model)


@pytest.mark.parametrize("where", ["hub", "file"])
def test_the_copies_of_all_records_of_a_base_are_tested(merged, hub, tmp_path, where):
    for person, arrays in merged.copies.items():
        save_file(arrays, tmp_path / f"{person}.safetensors")
        suspect = put(hub, arrays, f"org/{person}") if where == "hub" else tmp_path / f"{person}.safetensors"

        result = trace(suspect, merged.vault, all_scores=True)

        assert names(result) == [person]
        assert result.base == merged.bases[person == "carol"].base_id
        assert sorted(score.recipient for score in result.scores) == ["alice", "bob", "carol"]
        assert result.recipients_tested == 3
        assert names(trace(suspect, merged.vault, base=merged.bases[0].base_id)) == [person]
        assert names(trace(suspect, merged.vault, base=merged.model)) == [person]


def test_a_claim_among_records_tests_only_those_with_a_copy_of_the_recipient(merged, hub):
    suspect = put(hub, merged.copies["carol"])

    result = verify(suspect, "carol", merged.vault)

    assert names(result) == ["carol"]
    assert result.recipients_tested == 1
    assert names(verify(suspect, "alice", merged.vault)) == []


def test_a_base_is_opened_where_any_of_its_issuers_had_it(merged, hub, monkeypatch, tmp_path):
    gone = [replace(merged.bases[0], source=str(tmp_path / "elsewhere")), merged.bases[1]]
    rows = merged.vault.rows()
    monkeypatch.setattr(merged.vault, "rows", lambda: replace(rows, bases=gone))

    assert names(trace(put(hub, merged.copies["alice"]), merged.vault)) == ["alice"]
    gone[1] = replace(gone[1], source=str(tmp_path / "nowhere"))
    assert "elsewhere" in refused(trace, "org/suspect", merged.vault, error=VaultError)


# what may go wrong


def test_a_locked_vault_is_an_error_before_a_tensor_is_fetched(small, hub):
    suspect, locked = put(hub, small.copies["alice"]), Vault(small.vault.folder)

    assert "locked" in refused(trace, suspect, locked, error=FingerprintError)


def test_no_token_and_no_address_shows_in_an_error(small, hub, monkeypatch):
    hub.account("reader", orgs=["org"], token="hf_secret_token")
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    suspect = put(hub, small.copies["alice"], private=True)
    hub.faults.append(Fault(match="/lfs-store/", times=99))

    text = refused(trace, suspect, small.vault, error=CheckpointError)

    assert suspect in text
    assert "hf_secret_token" not in text
    assert "signature" not in text


def test_nothing_of_the_vault_goes_to_the_hub(small, hub):
    suspect = put(hub, small.copies["alice"])
    trace(suspect, small.vault)

    sent = repr(hub.received)
    for name in (*NAMES, small.base.base_id, str(small.vault.folder)):
        assert name not in sent


def test_progress_is_reported(wide, hub):
    steps: list[tuple[str, int, int | None]] = []
    trace(put(hub, drifted(wide.own, 0.01)), wide.vault, progress=lambda *step: steps.append(step))

    assert max(done for step, done, _ in steps if step == "extracting") == wide.base.carrier_weights
    assert {step for step, _, _ in steps} == {"extracting", *(f"scoring, look {i}" for i in range(1, 6))}


def test_ranges_are_closed_behind_the_trace(small, hub, monkeypatch):
    left = []
    monkeypatch.setattr(RangedCheckpoint, "__exit__", lambda self, *_: left.append(self))

    trace(put(hub, small.copies["alice"]), small.vault)

    assert len(left) == 1
