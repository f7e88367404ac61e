"""The ancestor of a base: recorded if it is one, from the caller or the model card, and opened as it was recorded."""

import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from hf_fingerprint import issue, register
from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.errors import CheckpointError, FingerprintError, FingerprintWarning, VaultError
from hf_fingerprint.registration import known_ancestors, open_ancestor
from hf_fingerprint.vault import Ancestor
from tests.helpers.error_checks import refused
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.small_models import PLAIN_SETTINGS, new_vault, plain_arrays, save_plain


pytestmark = pytest.mark.integration
PUBLIC = plain_arrays(seed=1)


def finetuned(arrays, share=0.1, seed=2):
    rng = np.random.default_rng(seed)
    return {
        name: (a + share * a.std() * rng.standard_normal(a.shape)).astype(a.dtype)
        if a.dtype == np.float32 and a.size
        else a
        for name, a in arrays.items()
    } | {"head.weight": np.ones((3, 48), np.float32), "head.bias": np.zeros(3, np.float32)}


BASE = finetuned(PUBLIC)


def card(*lines):
    return "\n".join(["---", "license: mit", *lines, "---", "# A model"])


def saved(folder, *lines):
    """The base, with a model card that has these lines in its front matter."""
    return save_plain(folder, BASE, README_md=card(*lines))


def silently(action, *arguments, **keywords):
    """The result of an action that warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FingerprintWarning)
        return action(*arguments, **keywords)


@pytest.fixture
def case(tmp_path):
    vault, public = new_vault(tmp_path / "vault"), save_plain(tmp_path / "public", PUBLIC)
    return SimpleNamespace(vault=vault, public=public, model=save_plain(tmp_path / "model", BASE), root=tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub() as found:
        found.point_client(monkeypatch, tmp_path / "cache")
        found.add("org/public", {"model.safetensors": save(PUBLIC), "config.json": b"{}", "extra.bin": b"not weights"})
        yield found


def hash_of(path):
    with open_checkpoint(path) as checkpoint:
        return content_hash(checkpoint.tensors, digest_tensors(checkpoint))


# At registration


def test_the_given_ancestor_stands_in_the_record(case):
    base = silently(register, case.model, case.vault, PLAIN_SETTINGS, ancestor=case.public)

    assert base.ancestor == Ancestor(str(case.public), None, hash_of(case.public))
    assert case.vault.bases() == [base]


def test_a_repo_on_the_hub_is_recorded_with_the_commit_it_had(case, hub):
    base = silently(register, case.model, case.vault, PLAIN_SETTINGS, ancestor="org/public")

    commit = hub.repos["org/public"].history()[0].sha
    assert base.ancestor == Ancestor("org/public", commit, hash_of(case.public))
    hub.repos["org/public"].commit({"model.safetensors": save(BASE)})
    again = new_vault(case.root / "again")
    assert register(case.model, again, PLAIN_SETTINGS, ancestor=f"org/public@{commit}").ancestor == base.ancestor


def test_an_issue_that_registers_records_it_too_and_the_copy_does_not_show_it(case):
    copy = issue(case.model, "alice", case.vault, case.root / "alice", PLAIN_SETTINGS, ancestor=case.public).path

    (base,) = case.vault.bases()
    assert base.ancestor is not None
    assert base.ancestor.content_hash == hash_of(case.public)
    held = b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    assert base.ancestor.content_hash.encode() not in held
    assert str(case.public).encode() not in held


@pytest.mark.parametrize("lines", [("base_model: org/public",), ("base_model:", "- org/public")])
def test_the_base_model_of_the_card_is_the_default(case, hub, lines):
    base = silently(register, saved(case.root / "carded", *lines), case.vault, PLAIN_SETTINGS)

    assert base.ancestor is not None
    assert base.ancestor.source == "org/public"
    assert hub.downloads() == {"model.safetensors", "config.json"}


def test_a_base_on_the_hub_brings_its_card(case, hub):
    hub.add("org/base", {"model.safetensors": save(BASE), "README.md": card("base_model: org/public").encode()})

    base = silently(register, "org/base", case.vault, PLAIN_SETTINGS)

    assert base.ancestor is not None
    assert base.ancestor.source == "org/public"


def test_a_folder_of_the_cards_name_is_not_taken_for_the_repo(case, hub, monkeypatch):
    save_plain(case.root / "org" / "public", finetuned(PUBLIC, seed=5))
    monkeypatch.chdir(case.root)

    base = silently(register, saved(case.root / "carded", "base_model: org/public"), case.vault, PLAIN_SETTINGS)

    assert base.ancestor is not None
    assert (base.ancestor.source, base.ancestor.content_hash) == ("org/public", hash_of(case.public))


@pytest.mark.parametrize("ancestor", [False, "given"])
def test_the_card_is_not_read_where_the_caller_says_which_or_none(case, hub, ancestor):
    model = saved(case.root / "carded", "base_model: org/public")

    base = silently(register, model, case.vault, PLAIN_SETTINGS, ancestor=ancestor and case.public)

    assert (base.ancestor is None) == (ancestor is False)
    assert not hub.calls


@pytest.mark.parametrize("text", [card(), card("base_model: []"), card("base_model:"), "# A model", "", "----\n"])
def test_a_card_without_a_base_model_says_nothing(case, hub, caplog, text):
    model = save_plain(case.root / "carded", BASE, README_md=text)

    assert silently(register, model, case.vault, PLAIN_SETTINGS).ancestor is None
    assert not hub.calls
    assert not caplog.records


UNUSABLE = {
    "missing": ("base_model: org/nowhere", "org/nowhere"),
    "two": ("base_model: [org/public, org/other]", "2 models"),
    "a path": ("base_model: ../public", "../public"),
    "an absolute path": ("base_model: /etc/passwd", "/etc/passwd"),
    "a path in two parts": ("base_model: ../..", "../.."),
    "a link": ("base_model: https://evil.example/x", "evil.example"),
    "a commit": ("base_model: org/public@main", "org/public@main"),
    "a file": ("base_model: 'org/public:x.bin'", "org/public:x.bin"),
    "escapes": ('base_model: "org/\\x1b[2J"', "org/"),
    "a number": ("base_model: 7", "7"),
    "a mapping": ("base_model: {a: b}", "a"),
    "unreadable": ("base_model: [", "front matter"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_the_card_names_and_cannot_be_had_is_one_line_and_no_error(case, hub, kind):
    line, said = UNUSABLE[kind]
    model = saved(case.root / "carded", line)

    with pytest.warns(FingerprintWarning) as caught:
        base = register(model, case.vault, PLAIN_SETTINGS)

    (text,) = [str(each.message) for each in caught if "ancestor" in str(each.message)]
    assert said in text
    assert text.isprintable()
    assert "--ancestor" in text
    assert base.ancestor is None
    assert kind == "missing" or not hub.calls


@pytest.mark.parametrize("how", ["down", "offline", "failing"])
def test_a_hub_that_is_not_reached_leaves_the_default_out(case, hub, monkeypatch, how):
    model = saved(case.root / "carded", "base_model: org/public")
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif how == "failing":
        hub.failing[""] = 503
    else:
        hub.stop()

    with pytest.warns(FingerprintWarning, match="org/public"):
        assert register(model, case.vault, PLAIN_SETTINGS).ancestor is None
    assert how != "offline" or not hub.calls
    said = refused(lambda: register(case.model, new_vault(case.root / "v"), PLAIN_SETTINGS, ancestor="org/public"))
    assert "org/public" in said


def other_names(arrays):
    return {f"x{number}.{name}": values for number, (name, values) in enumerate(arrays.items())}


NO_ANCESTORS = {
    "another model": (plain_arrays(seed=9), "not similar (cosine"),
    "other shapes": (
        {name: np.repeat(a, 2, -1) if a.ndim > 1 else a for name, a in PUBLIC.items()},
        "0 of 17 weights",
    ),
    "fewer than half": ({name: a for name, a in PUBLIC.items() if "blocks.0" in name}, "4 of 17 weights"),
    "other names": (other_names(PUBLIC), "0 of 17 weights"),
    "the base itself": (BASE, "the same weights"),
    "another head on the base": (BASE | {"head.weight": np.zeros((5, 48), np.float32)}, "the same weights"),
    "zeros": ({name: np.zeros_like(a) for name, a in PUBLIC.items()}, "not similar"),
    "not finite": ({n: np.full_like(a, np.nan) if a.dtype == np.float32 else a for n, a in PUBLIC.items()}, "similar"),
}


@pytest.mark.parametrize("kind", NO_ANCESTORS)
def test_a_model_that_is_no_ancestor_is_refused_and_nothing_is_registered(case, kind):
    arrays, said = NO_ANCESTORS[kind]
    other = save_plain(case.root / "other", arrays)

    text = refused(lambda: register(case.model, case.vault, PLAIN_SETTINGS, ancestor=other), error=CheckpointError)

    assert said in text
    assert str(other) in text
    assert str(case.model) in text
    assert case.vault.bases() == []


@pytest.mark.parametrize("kind", ["another model", "the base itself"])
def test_a_card_that_names_no_ancestor_is_ignored_with_a_line(case, hub, kind):
    hub.add("org/other", {"model.safetensors": save(NO_ANCESTORS[kind][0])})

    with pytest.warns(FingerprintWarning, match=NO_ANCESTORS[kind][1].replace("(", "\\(")):
        base = register(saved(case.root / "carded", "base_model: org/other"), case.vault, PLAIN_SETTINGS)

    assert base.ancestor is None


def test_half_precision_wrappers_and_a_drift_of_its_own_norm_leave_an_ancestor(case):
    far = save_plain(case.root / "far", finetuned(PUBLIC, share=1.0))
    wrapped = {f"module.{n}": a.astype(np.float16) if a.dtype == np.float32 else a for n, a in PUBLIC.items()}

    base = register(far, case.vault, PLAIN_SETTINGS, ancestor=save_plain(case.root / "half", wrapped))

    assert base.ancestor is not None
    with open_ancestor(base, case.vault) as ancestor:
        assert {carrier.name for carrier in base.carriers} <= set(ancestor.tensors)
        assert "head.weight" not in ancestor.tensors


def test_a_download_much_larger_than_the_base_is_not_begun(case, hub, monkeypatch):
    monkeypatch.setattr(known_ancestors, "MAX_EXTRA_BYTES", 0)
    hub.add("org/huge", {"model.safetensors": save(PUBLIC | {"x": np.zeros((2000, 2000), np.float32)})})
    model = saved(case.root / "carded", "base_model: org/huge")

    with pytest.warns(FingerprintWarning, match="org/huge is not known to have at most"):
        base = register(model, case.vault, PLAIN_SETTINGS)

    assert base.ancestor is None
    assert not hub.downloads()
    named = register(model, case.vault, ancestor="org/huge")  # by the caller: of any size
    assert named.ancestor is not None
    shutil.rmtree(case.root / "cache")
    for recorded in (named, replace(named, ancestor=replace(named.ancestor, revision=None))):
        said = refused(open_ancestor, recorded, case.vault, error=VaultError)
        assert "org/huge" in said
        assert named.base_id in said
    assert not (case.root / "cache").exists()


# A base that is registered already


def test_a_known_base_gets_an_ancestor_and_keeps_its_secret(case):
    before = register(case.model, case.vault, PLAIN_SETTINGS)

    after = register(case.model, case.vault, ancestor=case.public)

    assert after.ancestor is not None
    assert replace(after, ancestor=None) == before
    assert after.secret == before.secret
    assert case.vault.bases() == [after]
    assert register(case.model, case.vault) == after


def test_the_card_of_a_known_base_is_not_read(case, hub):
    model = saved(case.root / "carded", "base_model: org/public")
    before = register(model, case.vault, PLAIN_SETTINGS, ancestor=False)

    assert register(model, case.vault) == before
    assert not hub.calls


def test_another_ancestor_than_the_recorded_one_is_refused_until_that_is_removed(case):
    other = save_plain(case.root / "other", finetuned(PUBLIC, seed=7))
    recorded = register(case.model, case.vault, PLAIN_SETTINGS, ancestor=case.public)

    text = refused(lambda: register(case.model, case.vault, ancestor=other), error=VaultError)

    assert recorded.base_id in text
    assert str(case.public) in text
    assert str(other) in text
    assert "--ancestor none" in text
    assert case.vault.bases() == [recorded]
    assert register(case.model, case.vault, ancestor=False).ancestor is None
    assert register(case.model, case.vault, ancestor=other).ancestor is not None


def test_an_ancestor_that_moved_gets_its_new_place(case):
    recorded = register(case.model, case.vault, PLAIN_SETTINGS, ancestor=case.public)
    moved = shutil.move(case.public, case.root / "moved")

    found = register(case.model, case.vault, ancestor=moved)

    assert found.ancestor == replace(recorded.ancestor, source=str(moved))


def test_a_second_record_of_the_weights_has_the_ancestor_of_the_first(case):
    first = register(case.model, case.vault, PLAIN_SETTINGS, ancestor=case.public)

    second = register(case.model, case.vault, replace(PLAIN_SETTINGS, amplitude=0.006), remeasure=True)

    assert second.base_id != first.base_id
    assert second.ancestor == first.ancestor


# Opening it


@pytest.fixture
def recorded(case):
    base = register(case.model, case.vault, PLAIN_SETTINGS, ancestor=case.public)
    return SimpleNamespace(**vars(case), base=base)


def test_it_opens_under_the_bases_names_where_it_was_recorded(recorded):
    with open_ancestor(recorded.base, recorded.vault) as ancestor:
        info = ancestor.tensors["blocks.0.attn.qkv.weight"]
        assert ancestor.read(info).tobytes() == PUBLIC["blocks.0.attn.qkv.weight"].tobytes()
        assert "head.weight" not in ancestor.tensors


def test_it_opens_elsewhere_if_the_caller_says_where(recorded):
    moved = shutil.move(recorded.public, recorded.root / "moved")

    said = refused(open_ancestor, recorded.base, recorded.vault, error=VaultError)
    assert recorded.base.base_id in said
    assert "--ancestor" in said
    with open_ancestor(recorded.base, recorded.vault, given=moved) as ancestor:
        assert ancestor.source.name == str(moved)


@pytest.mark.parametrize("given", [True, False])
def test_other_weights_than_those_on_record_are_refused(recorded, given):
    arrays = load_file(recorded.public / "model.safetensors")
    arrays["conv.weight"][0, 0, 0, 0] += 1
    place = recorded.root / "other" if given else recorded.public
    place.mkdir(exist_ok=True)
    save_file(arrays, place / "model.safetensors")

    said = refused(
        lambda: open_ancestor(recorded.base, recorded.vault, given=place if given else None), error=VaultError
    )

    assert "another hash" in said
    assert str(place) in said


def test_a_base_without_one_has_none_to_open(recorded):
    base = recorded.vault.set_ancestor(recorded.base, None)

    assert "no ancestor on record" in refused(open_ancestor, base, recorded.vault, error=VaultError)


def test_a_commit_in_the_cache_is_opened_without_a_request_and_fetched_again_if_it_is_gone(case, hub):
    base = register(case.model, case.vault, PLAIN_SETTINGS, ancestor="org/public")
    hub.repos["org/public"].commit({"model.safetensors": save(BASE)})
    before = len(hub.calls)

    with open_ancestor(base, case.vault) as ancestor:
        assert ancestor.tensors
    assert len(hub.calls) == before
    shutil.rmtree(case.root / "cache")
    with open_ancestor(base, case.vault) as ancestor:
        assert ancestor.source.revision == base.ancestor.revision
    assert len(hub.calls) > before


def test_an_ancestor_in_memory_is_recorded_and_given_again(case):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(a) for name, a in PUBLIC.items() if a.size}

    base = register(case.model, case.vault, PLAIN_SETTINGS, ancestor=state)

    assert base.ancestor is not None
    assert "recorded from memory" in refused(open_ancestor, base, case.vault, error=FingerprintError)
    with open_ancestor(base, case.vault, given=state) as ancestor:
        assert "conv.weight" in ancestor.tensors
