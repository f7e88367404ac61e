"""A copy is refused as a base, as it was issued or changed since; a base made from a base never is."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from hf_fingerprint import Issuer, issue, register, trace
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import FingerprintWarning, VaultError
from hf_fingerprint.registration import known_copies
from hf_fingerprint.registration.known_copies import (
    MAX_LOG_FALSE_MATCH,
    _log_bound,
    find_origin,
    log_false_match_bound,
)
from hf_fingerprint.vault import Vault, merge, take_snapshot
from hf_fingerprint.vault.schema import base_from_row, base_to_row
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import (
    PLAIN_CARRIERS,
    PLAIN_SETTINGS,
    new_vault,
    plain_arrays,
    save_plain,
    unlocked_vault,
)


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A base and two of its copies in a vault that stays locked. Not to be added to."""
    root = tmp_path_factory.mktemp("known_copies")
    vault, model = new_vault(root / "vault"), save_plain(root / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        alice, bob = issuer.issue_all(["alice", "bob"], root / "copies")
    weights = [load_file(folder / "model.safetensors") for folder in (model, alice.path, bob.path)]
    return SimpleNamespace(vault=vault, base=issuer.base, model=model, copy=alice.path, weights=weights)


def is_carrier(name):
    return name.endswith(PLAIN_CARRIERS)


def over_carriers(arrays, change):
    """The same weights, with each carrier changed by a function of it and its number."""
    return {
        name: change(values, number).astype(values.dtype) if is_carrier(name) else values
        for number, (name, values) in enumerate(arrays.items())
    }


def chance_of(shared, arrays, folder):
    """The log-probability that is bounded for these weights, and the origin that is found."""
    save_plain(folder, arrays)
    with open_checkpoint(folder) as model, open_checkpoint(shared.model) as original:
        matches = {name: model.tensors[name] for name in arrays if is_carrier(name)}
        return log_false_match_bound(shared.base, original, model, matches), find_origin(model, shared.vault)


def half(arrays):
    return {n: v.astype(np.float16) if v.dtype == np.float32 else v for n, v in arrays.items()}


def brain(values, number):
    """Rounded to bfloat16."""
    bits = values.view(np.uint32) + np.uint32(1 << 15)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def noised(values, size, seed):
    scale = np.sqrt(np.square(values).mean(axis=tuple(range(1, values.ndim)), keepdims=True))
    return values + size * scale * np.random.default_rng(seed).standard_normal(values.shape).astype(np.float32)


def low_rank(values, number):
    generator, flat = np.random.default_rng(number), values.reshape(len(values), -1)
    drift = generator.standard_normal((len(flat), 2)) @ generator.standard_normal((2, flat.shape[1]))
    return values + (0.01 * flat.std() * drift).reshape(values.shape)


COMPACT = {"carriers": "compact"}
COPIES = {
    "saved in half precision": lambda base, alice, bob: half(alice),
    "saved in half precision and back": lambda base, alice, bob: {
        n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in half(alice).items()
    },
    "saved in bfloat16": lambda base, alice, bob: over_carriers(alice, brain),
    "a new head": lambda base, alice, bob: alice | {"head.weight": np.ones((3, 48), np.float32)},
    "another head and norm": lambda base, alice, bob: (
        alice | {"head.bias": alice["head.bias"] + 1, "blocks.0.norm1.weight": np.ones(48, np.float32)}
    ),
    "fine-tuned by more than the mark": lambda base, alice, bob: over_carriers(alice, lambda v, k: noised(v, 0.01, k)),
    "the average of two copies": lambda base, alice, bob: {
        n: (v + bob[n]) / 2 if is_carrier(n) else v for n, v in alice.items()
    },
    "halfway to the base": lambda base, alice, bob: {
        n: (v + base[n]) / 2 if is_carrier(n) else v for n, v in alice.items()
    },
    "half of the carriers restored": lambda base, alice, bob: {
        n: base[n] if n.startswith(("blocks.0", "blocks.1")) else v for n, v in alice.items()
    },
    "half of the carriers restored and rounded": lambda base, alice, bob: {
        n: base[n] * np.float32(1 + 1e-6) if n.startswith(("blocks.0", "blocks.1")) else v for n, v in alice.items()
    },
    "one weight blown up and one lost": lambda base, alice, bob: (
        alice
        | {
            "conv.weight": np.where(
                np.arange(9) == 4, np.float32(1e30), alice["conv.weight"].reshape(48, 48, 9)
            ).reshape(48, 48, 3, 3)
        }
    ),
}
OTHERS = {
    "the base in half precision": lambda base: half(base),
    "the base in bfloat16": lambda base: over_carriers(base, brain),
    "the base with a new head": lambda base: base | {"head.weight": np.ones((3, 48), np.float32)},
    "a drift as small as the mark": lambda base: over_carriers(base, lambda v, k: noised(v, 0.003, k)),
    "a usual drift": lambda base: over_carriers(base, lambda v, k: noised(v, 0.05, k)),
    "weight decay": lambda base: over_carriers(base, lambda v, k: 0.997 * v),
    "a low-rank drift": lambda base: over_carriers(base, low_rank),
    "every weight moved up alike": lambda base: over_carriers(base, lambda v, k: v + 0.003 * v.std()),
    "every sign step alike": lambda base: over_carriers(base, lambda v, k: v + 0.003 * v.std() * np.sign(v)),
    "one layer changed": lambda base: base | {"conv.weight": noised(base["conv.weight"], 0.1, 0)},
    "a few weights far off": lambda base: over_carriers(
        base, lambda v, k: np.where(np.random.default_rng(k).random(v.shape) < 1e-3, 100 * v, v)
    ),
    "pruned": lambda base: over_carriers(base, lambda v, k: np.where(np.abs(v) < 0.02, 0, v)),
    "another model of these shapes": lambda base: plain_arrays(seed=1),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_known_by_its_mark(shared, tmp_path, change):
    chance, origin = chance_of(shared, COPIES[change](*shared.weights), tmp_path / "changed")

    assert chance < 2 * MAX_LOG_FALSE_MATCH
    assert origin is not None
    assert (origin.base, origin.recipient) == (shared.base, None)


@pytest.mark.parametrize("change", OTHERS)
def test_what_was_made_from_the_base_is_no_copy(shared, tmp_path, change):
    chance, origin = chance_of(shared, OTHERS[change](shared.weights[0]), tmp_path / "own")

    assert chance > MAX_LOG_FALSE_MATCH / 2
    assert origin is None


def test_names_under_another_prefix_hide_nothing(shared, tmp_path):
    renamed = {f"module.timm_model.{n}": v for n, v in half(shared.weights[1]).items()}

    with open_checkpoint(save_plain(tmp_path / "renamed", renamed)) as model:
        assert find_origin(model, shared.vault).base == shared.base


def test_copies_of_bases_in_half_precision_and_of_compact_ones_are_known(tmp_path):
    for number, (arrays, changes) in enumerate([(half(plain_arrays()), {}), (plain_arrays(blocks=40), COMPACT)]):
        vault, model = new_vault(tmp_path / f"vault{number}"), save_plain(tmp_path / f"model{number}", arrays)
        settings = replace(PLAIN_SETTINGS, **changes)
        copy = issue(model, "alice", vault, tmp_path / f"copy{number}", settings).path
        weights = {n: v.astype(np.float32) for n, v in load_file(copy / "model.safetensors").items()}

        with open_checkpoint(save_plain(tmp_path / f"changed{number}", weights)) as opened:
            assert find_origin(opened, vault).base == vault.bases()[0]
        with open_checkpoint(save_plain(tmp_path / f"other{number}", half(arrays))) as opened:
            assert number == 0 or find_origin(opened, vault) is None


@pytest.mark.parametrize("law", ["signs", "normal", "sparse", "one large"])
def test_the_bound_holds_over_many_secrets(law):
    generator = np.random.default_rng(0)
    x = {
        "signs": np.ones((40, 16)),
        "normal": generator.standard_normal((40, 16)),
        "sparse": generator.standard_normal((40, 16)) * (generator.random((40, 16)) < 0.1),
        "one large": np.where(np.arange(640).reshape(40, 16) == 3, 30, 1.0),
    }[law]
    v = np.square(x).sum(1)

    bounds = np.array([_log_bound((np.where(generator.random(x.shape) < 0.5, x, -x)).sum(1), v) for _ in range(20000)])

    for chance in (0.5, 0.1, 0.01, 0.001):
        assert np.mean(bounds <= np.log(chance)) <= chance


def test_a_copy_as_issued_is_refused_by_its_recipients_name(shared):
    with pytest.raises(VaultError) as caught:
        register(shared.copy, shared.vault, PLAIN_SETTINGS)

    assert str(caught.value) == (
        f"{shared.copy} is alice's copy of base {shared.base.base_id} ({shared.model}): give that base itself, or "
        f"register the copy as a base with --as-base (as_base=True)."
    )
    assert shared.vault.bases() == [shared.base]


def test_a_changed_copy_is_refused_by_its_bases_name(shared, tmp_path):
    changed = save_plain(tmp_path / "changed", half(shared.weights[1]))

    with pytest.raises(VaultError) as caught:
        issue(changed, "carol", shared.vault, tmp_path / "out", PLAIN_SETTINGS)

    assert str(caught.value).startswith(
        f"{changed} carries the mark of base {shared.base.base_id} ({shared.model}), so it is a changed copy:"
    )
    assert "alice" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_known_base_is_compared_with_nothing(shared, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.registration.registering.find_origin", lambda *given: 1 / 0)

    assert register(shared.model, shared.vault) == shared.base


def test_a_record_that_was_only_begun_is_no_copy(tmp_path):
    vault, model = new_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    base = register(model, vault, PLAIN_SETTINGS)
    vault.begin_copy(base, "alice", tmp_path / "alice")

    assert register(save_plain(tmp_path / "other", plain_arrays(seed=1)), vault, PLAIN_SETTINGS).copy_of is None


def test_a_base_whose_files_are_gone_or_changed_is_left_out_by_name(tmp_path, recwarn):
    vault, model = new_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    copy = issue(model, "alice", vault, tmp_path / "alice", PLAIN_SETTINGS).path
    changed = save_plain(tmp_path / "changed", half(load_file(copy / "model.safetensors")))
    (base,) = vault.bases()
    save_plain(model, plain_arrays(seed=5))

    with open_checkpoint(changed) as opened, pytest.warns(FingerprintWarning, match=f"{base.base_id} \\({model}\\)"):
        assert find_origin(opened, vault) is None

    (model / "model.safetensors").unlink()
    with open_checkpoint(changed) as opened, pytest.warns(FingerprintWarning, match="missing or have changed"):
        assert find_origin(opened, vault) is None
    with open_checkpoint(copy) as opened:  # only the hash shows it
        assert find_origin(opened, vault).recipient == "alice"


def test_a_base_from_the_hub_is_opened_from_the_cache_and_never_fetched(tmp_path, monkeypatch):
    vault = new_vault(tmp_path / "vault")
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        hub.add("org/model", {"model.safetensors": save(plain_arrays())})
        copy = issue("org/model", "alice", vault, tmp_path / "alice", PLAIN_SETTINGS).path
        (base,) = vault.bases()
        calls = len(hub.calls)

        with open_checkpoint(save_plain(tmp_path / "changed", half(load_file(copy / "model.safetensors")))) as changed:
            assert find_origin(changed, vault).base == base
            shutil.rmtree(tmp_path / "cache")
            with pytest.warns(FingerprintWarning, match=f"{base.base_id} \\(org/model\\)"):
                assert find_origin(changed, vault) is None
        assert len(hub.calls) == calls


def test_models_of_other_shapes_are_not_compared_at_all(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(known_copies, "open_local_base", lambda *given: 1 / 0)
    other = {f"{n}x": v for n, v in plain_arrays(seed=1).items()}

    with open_checkpoint(save_plain(tmp_path / "other", other)) as opened:
        assert find_origin(opened, shared.vault) is None


def test_a_distant_model_costs_a_few_rows(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(known_copies, "block_rows", lambda info: 1 / 0)

    with open_checkpoint(save_plain(tmp_path / "other", plain_arrays(seed=1))) as opened:
        assert find_origin(opened, shared.vault) is None


def test_copies_of_an_older_record_of_the_same_weights_are_known_too(tmp_path):
    vault, model = new_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    copy = issue(model, "alice", vault, tmp_path / "alice", PLAIN_SETTINGS).path
    (old,) = vault.bases()
    register(model, vault, replace(PLAIN_SETTINGS, amplitude=0.006), remeasure=True)

    with open_checkpoint(save_plain(tmp_path / "changed", half(load_file(copy / "model.safetensors")))) as opened:
        assert find_origin(opened, vault).base == old


class TestAsBase:
    @pytest.fixture
    def both(self, tmp_path):
        """A base, and a changed copy of it that was registered as a base on purpose."""
        vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
        copy = issue(model, "alice", vault, tmp_path / "alice", PLAIN_SETTINGS)
        changed = half(load_file(copy.path / "model.safetensors")) | {"head.bias": np.zeros(10, np.float16)}
        folder = save_plain(tmp_path / "changed", changed)
        mine = register(folder, vault, PLAIN_SETTINGS, as_base=True)
        return SimpleNamespace(vault=vault, model=model, copy=copy.path, folder=folder, base=mine, root=tmp_path)

    def test_its_record_says_whose_copy_it_is(self, both):
        original, mine = both.vault.bases()

        assert mine == both.base
        assert (original.copy_of, mine.copy_of) == (None, original.base_id)
        assert mine.describe()["copy_of"] == original.base_id
        assert "copy_of" not in original.describe()
        assert base_from_row(base_to_row(mine)) == mine
        assert register(both.folder, both.vault) == mine  # known by now

    def test_a_copy_as_issued_can_be_a_base_too(self, both):
        base = register(both.copy, both.vault, PLAIN_SETTINGS, as_base=True)

        assert base.copy_of == both.vault.bases()[0].base_id

    def test_its_copies_trace_and_are_copies_of_it_first(self, both):
        copy = issue(both.folder, "carol", both.vault, both.root / "carol").path
        changed = load_file(copy / "model.safetensors") | {"head.bias": np.ones(10, np.float16)}

        with open_checkpoint(save_plain(both.root / "carols", changed)) as opened:
            assert find_origin(opened, both.vault).base == both.base
        assert "carol" in [score.recipient for score in trace(copy, both.vault, base=both.folder).accused]

    def test_a_second_record_of_it_keeps_that(self, both):
        again = register(both.folder, both.vault, replace(PLAIN_SETTINGS, amplitude=0.006), remeasure=True)

        assert (again.replaces, again.copy_of) == (both.base.base_id, both.base.copy_of)

    def test_merging_vaults_keeps_it(self, both, monkeypatch):
        monkeypatch.setattr("hf_fingerprint.vault.store.encrypt_identity", lock_quickly)
        other = Vault.create_empty(both.root / "other", both.vault.public_key)

        merge(other, take_snapshot(both.vault))

        assert other.bases() == both.vault.bases()

    def test_what_is_no_copy_is_registered_as_ever(self, both):
        other = save_plain(both.root / "fresh", plain_arrays(seed=3))

        assert register(other, both.vault, PLAIN_SETTINGS, as_base=True).copy_of is None
