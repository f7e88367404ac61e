"""Modules and state dicts as suspects and as bases."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import ViTForImageClassification

from hf_fingerprint import Issuer, issue, trace, verify
from hf_fingerprint.attacks import ChannelPermutation, Quantization
from hf_fingerprint.checkpoints.tensor_names import to_timm
from hf_fingerprint.errors import VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.registration import lookup_base, register
from tests.helpers.error_checks import refused
from tests.helpers.small_models import SETTINGS, save_vit, unlocked_vault


pytestmark = pytest.mark.integration
NAMES = ("alice", "bob")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A transformers model registered from its files, and copies as transformers loads them, under other names."""
    root = tmp_path_factory.mktemp("files")
    folder, vault = save_vit(root / "model"), unlocked_vault(root / "vault")
    with Issuer(folder, vault, SETTINGS) as issuer:
        folders = {copy.recipient: copy.path for copy in issuer.issue_all(NAMES, root / "copies")}
    copies = {name: ViTForImageClassification.from_pretrained(path) for name, path in folders.items()}
    model = ViTForImageClassification.from_pretrained(folder)
    return SimpleNamespace(folder=folder, vault=vault, base=issuer.base, folders=folders, copies=copies, model=model)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A timm model that is registered from memory, and a copy."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10)
    vault = unlocked_vault(tmp_path_factory.mktemp("memory") / "vault")
    return SimpleNamespace(model=model, vault=vault, copy=issue(model, "alice", vault, config=SETTINGS))


def accused(result) -> list[str]:
    return [score.recipient for score in result.accused]


def test_transformers_renames_on_load(case):
    assert not {n for n in case.model.state_dict() if "encoder" in n}
    assert [n for n in case.base.tensors if "encoder" in n]


@pytest.mark.parametrize(
    "attack", [None, ChannelPermutation(), Quantization(bits=8)], ids=["copy", "permuted", "int8"]
)
def test_scores_are_those_of_the_same_weights_in_a_file(case, tmp_path, attack):
    state = case.copies["alice"].state_dict()
    state = state if attack is None else attack(state)
    file = tmp_path / "suspect.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)

    found, expected = trace(state, case.vault), trace(file, case.vault)

    assert accused(found) == ["alice"]
    assert found.accused == expected.accused
    assert (found.lineage, found.tensors_aligned) == (expected.lineage, expected.tensors_aligned)
    assert (found.suspect, found.files) == ("state dict (in memory)", ())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_module_in_half_precision_is_traced(case, dtype):
    result = trace(deepcopy(case.copies["bob"]).to(dtype), case.vault)

    assert accused(result) == ["bob"]
    assert result.suspect == "ViTForImageClassification (in memory)"


def test_a_copy_on_record_is_known_by_its_hash_under_other_names(case):
    for suspect in (case.copies["alice"], torch.nn.DataParallel(case.copies["alice"]), case.folders["alice"]):
        assert [each.recipient for each in trace(suspect, case.vault).on_record] == ["alice"]
    assert not trace(case.model, case.vault).on_record


def test_the_names_of_another_library_are_understood(case):
    split = {to_timm(name): tensor for name, tensor in case.copies["bob"].state_dict().items()}
    fused = dict(split)
    for i in range(4):
        for kind in ("weight", "bias"):
            parts = [fused.pop(f"blocks.{i}.attn.{each}.{kind}") for each in "qkv"]
            fused[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)

    assert accused(trace(split, case.vault)) == accused(trace(fused, case.vault)) == ["bob"]


def test_names_that_say_nothing_are_understood(case):
    state = {f"w{i}": tensor for i, tensor in enumerate(case.copies["bob"].state_dict().values())}

    assert accused(trace(state, case.vault)) == ["bob"]


def test_a_fine_tuned_module_is_traced(case):
    module = deepcopy(case.copies["alice"]).train()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
    torch.manual_seed(0)
    for _ in range(5):
        loss = module(pixel_values=torch.randn(8, 3, 32, 32), labels=torch.randint(0, 10, (8,))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert accused(trace(module, case.vault)) == ["alice"]


def test_the_base_itself_accuses_nobody(case):
    assert trace(case.model, case.vault).outcome is Outcome.NOBODY
    assert trace(case.model, case.vault, base=case.model).outcome is Outcome.NOBODY


def test_a_claim_is_tested_in_memory(case):
    assert accused(verify(case.copies["alice"], "alice", case.vault)) == ["alice"]
    assert not accused(verify(case.copies["alice"], "bob", case.vault))


def test_tensors_that_can_not_be_read_are_reported(case):
    state = {name: torch.empty_like(t, device="meta") for name, t in case.copies["alice"].state_dict().items()}

    result = trace(state, case.vault)

    assert result.outcome is Outcome.NOT_READABLE
    assert result.tensors_left_out == len(state)
    assert "no data" in str(result.reason)


@pytest.mark.parametrize("kind", ["module", "state dict", "folder", "folder renamed"])
def test_base_gives_what_is_not_reachable(case, tmp_path, kind):
    base = {"module": case.model, "state dict": case.model.state_dict(), "folder": case.folder}.get(kind)
    if base is None:
        base = tmp_path / "base.safetensors"
        save_file(case.model.state_dict(), base)
    lost = case.folder.rename(case.folder.with_name("moved"))
    try:
        base = lost if kind == "folder" else base
        assert "--base" in refused(trace, case.copies["bob"], case.vault, error=VaultError)
        assert accused(trace(case.copies["bob"], case.vault, base=base)) == ["bob"]
        permuted = ChannelPermutation()(case.copies["bob"].state_dict())
        result = trace(permuted, case.vault, base=base)
        assert accused(result) == ["bob"]
        assert result.tensors_aligned
    finally:
        lost.rename(case.folder)


def test_a_base_that_exists_in_memory_only_is_traced_with_base(live, tmp_path):
    (base,) = live.vault.bases()
    assert base.source == "VisionTransformer (in memory)"
    assert base.calibration.output == "single_label"
    text = refused(trace, live.copy, live.vault, error=VaultError)
    assert "from memory" in text and base.base_id in text
    permuted = ChannelPermutation()(live.copy.state_dict())

    for given in (live.model, live.model.state_dict()):
        assert accused(trace(live.copy, live.vault, base=given)) == ["alice"]
    assert accused(trace(permuted, live.vault, base=live.model)) == ["alice"]
    save_file(live.copy.state_dict(), tmp_path / "leak.safetensors")
    assert accused(trace(tmp_path / "leak.safetensors", live.vault, base=live.model)) == ["alice"]


def test_its_name_is_no_way_to_find_it(live, tmp_path, monkeypatch):
    (base,) = live.vault.bases()
    monkeypatch.chdir(tmp_path)
    save_file(live.model.state_dict(), tmp_path / base.source)

    assert lookup_base(live.vault, live.model).base_id == base.base_id
    assert "from memory" in refused(trace, live.copy, live.vault, error=VaultError)


def test_another_model_as_base_is_refused(case, live):
    assert "not on record" in refused(trace, case.model, case.vault, live.model, error=VaultError)


def test_a_module_has_its_bases_record_and_a_changed_one_has_its_own(case, tmp_path):
    assert register(case.model, case.vault).base_id == case.base.base_id
    assert register(case.model.state_dict(), case.vault).base_id == case.base.base_id
    headless = {n: t for n, t in case.model.state_dict().items() if not n.startswith("classifier")}
    assert register(headless, case.vault).base_id == case.base.base_id
    other = deepcopy(case.model)
    with torch.no_grad():
        other.classifier.bias += 1
    vault = unlocked_vault(tmp_path / "vault")
    known = register(case.model, vault, SETTINGS)
    assert register(other, vault, SETTINGS).base_id != known.base_id
    assert len(vault.bases()) == 2


def test_a_copy_in_memory_is_no_base(case):
    assert "alice's copy" in refused(register, case.copies["alice"], case.vault, error=VaultError)
    changed = deepcopy(case.copies["alice"])
    with torch.no_grad():
        changed.classifier.weight.zero_()
    assert "carries the mark" in refused(register, changed, case.vault, error=VaultError)
