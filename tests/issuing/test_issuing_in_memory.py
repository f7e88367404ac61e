"""Copies of modules and state dicts: in memory, saved by their library, and pushed."""

import json
import pickle
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTForImageClassification

from hf_fingerprint import FingerprintConfig, Issuer, issue, trace
from hf_fingerprint.blackbox.trigger_set.build import make_trigger_set
from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.errors import BuildError, CheckpointError, FingerprintWarning, VaultError
from hf_fingerprint.keys import commitment
from hf_fingerprint.registration import register
from tests.helpers.error_checks import refused
from tests.helpers.secret_forms import find_secrets, secret_forms
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, names_in, save_vit, unlocked_vault


pytestmark = pytest.mark.integration


class Small(torch.nn.Module):
    """A network of no library, whose first and last layers are tied."""

    image_size = 16

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(1, 64, 4, 4)
        self.hidden = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
        self.again = torch.nn.Linear(64, 64)
        self.again.weight = self.hidden[1].weight
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.again(self.hidden(self.stem(x).relu().mean((2, 3))).relu()))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A timm model that is registered from memory."""
    torch.manual_seed(0)
    model, vault = (
        timm.create_model("test_vit", num_classes=10),
        unlocked_vault(tmp_path_factory.mktemp("m") / "vault"),
    )
    return SimpleNamespace(model=model, vault=vault, base=register(model, vault, SETTINGS))


@pytest.fixture(scope="module")
def filed(tmp_path_factory):
    """A transformers model that is registered from its files, and as transformers loads it, under other names."""
    root = tmp_path_factory.mktemp("f")
    folder, vault = save_vit(root / "model"), unlocked_vault(root / "vault")
    base, model = register(folder, vault, SETTINGS), ViTForImageClassification.from_pretrained(folder)
    return SimpleNamespace(folder=folder, vault=vault, base=base, model=model)


def accused(suspect, case) -> list[str]:
    return [score.recipient for score in trace(suspect, case.vault, base=case.model).accused]


def last_record(case):
    return case.vault.copies()[-1]


def test_a_module_gives_a_marked_module_and_stays_as_it_was(live):
    before = deepcopy(live.model.train().state_dict())
    live.model.head.requires_grad_(False)

    marked = issue(live.model, "alice", live.vault)

    assert type(marked) is type(live.model) and marked is not live.model
    assert marked.training and not marked.head.weight.requires_grad and marked.norm.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.model.state_dict().items())
    changed = {n for n, t in marked.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {carrier.name for carrier in live.base.carriers}
    assert accused(marked, live) == ["alice"]
    assert marked(torch.randn(2, 3, 160, 160)).shape == (2, 10)


def test_the_record_is_that_of_the_same_copy_in_a_folder(live, tmp_path):
    marked = issue(live.model, "alice", live.vault)
    record = last_record(live)

    timm.models.save_for_hf(marked, tmp_path / "saved", safe_serialization=True)
    with open_checkpoint(tmp_path / "saved") as saved:
        assert record.content_hash == content_hash(saved.tensors, digest_tensors(saved))
    assert (record.state, record.out) == ("issued", "(in memory)")
    assert record.commitment == commitment(live.vault.copy_key(record), "alice", record.content_hash)


def test_each_call_marks_and_records_another_copy(live):
    count = len(live.vault.copies())
    one, two = issue(live.model, "bob", live.vault), issue(live.model, "bob", live.vault)

    assert len(live.vault.copies()) == count + 2
    name = live.base.carriers[0].name
    assert not torch.equal(one.state_dict()[name], two.state_dict()[name])


def test_nothing_but_weights_distinguishes_a_marked_module(live):
    marked = issue(live.model, "alice", live.vault)
    key = live.vault.copy_key(last_record(live))

    assert vars(marked).keys() == vars(live.model).keys()
    assert [n for n, _ in marked.named_buffers()] == [n for n, _ in live.model.named_buffers()]
    for part, other in zip(marked.modules(), live.model.modules(), strict=True):
        assert vars(part).keys() == vars(other).keys()
        assert len(part._forward_hooks) == len(other._forward_hooks)
    content = pickle.dumps(marked)
    assert not find_secrets(content, secret_forms(live.base, key, "alice"))
    assert str(live.vault.folder).encode() not in content


def test_a_state_dict_gives_a_marked_state_dict(live):
    state = live.model.state_dict()
    marked = issue(state, "carol", live.vault)

    assert list(marked) == list(state)
    assert marked._metadata == state._metadata
    assert accused(marked, live) == ["carol"]
    fresh = timm.create_model("test_vit", num_classes=10)
    fresh.load_state_dict(marked)
    assert accused(fresh, live) == ["carol"]
    marked["pos_embed"] += 1
    assert not torch.equal(marked["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_rounded_as_in_a_file(filed, tmp_path, dtype):
    model, vault = deepcopy(filed.model).to(dtype), unlocked_vault(tmp_path / "vault")
    marked = issue(model, "alice", vault, config=SETTINGS)
    record, names = vault.copies()[0], {c.name for c in vault.bases()[0].carriers}

    assert {t.dtype for t in marked.state_dict().values()} == {dtype}
    changed = [(t != model.state_dict()[n]).float().mean() for n, t in marked.state_dict().items() if n in names]
    assert min(changed) > 0.1
    assert [s.recipient for s in trace(marked, vault, base=model).accused] == ["alice"]
    with open_checkpoint(marked) as opened:
        assert record.content_hash == content_hash(opened.tensors, digest_tensors(opened))


def test_a_module_from_files_is_recorded_under_the_names_of_the_files(filed, tmp_path):
    marked = issue(filed.model, "alice", filed.vault)
    record = last_record(filed)

    assert len(filed.vault.bases()) == 1
    marked.save_pretrained(tmp_path / "saved")
    with open_checkpoint(tmp_path / "saved") as saved:
        assert record.content_hash == content_hash(saved.tensors, digest_tensors(saved))
    result = trace(marked, filed.vault)
    assert [score.recipient for score in result.accused] == ["alice"]
    assert [each.copy_id for each in result.on_record] == [record.copy_id]


def test_base_registers_the_files_that_a_module_was_loaded_from(filed, live, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")

    marked = issue(filed.model, "alice", vault, config=SETTINGS, base=filed.folder)

    assert [base.source for base in vault.bases()] == [str(filed.folder)]
    assert [score.recipient for score in trace(marked, vault).accused] == ["alice"]
    with pytest.raises(VaultError, match="does not have the weights"):
        issue(live.model, "alice", vault, base=filed.folder)


def test_the_files_of_a_base_in_memory_have_its_record_under_their_own_names(filed, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    base = register(filed.model, vault, SETTINGS)

    copy = issue(filed.folder, "alice", vault, tmp_path / "alice")

    assert copy.base_id == base.base_id
    assert load_file(copy.path / "model.safetensors").keys() == load_file(filed.folder / "model.safetensors").keys()
    for given in (filed.model, filed.folder):
        result = trace(copy.path, vault, base=given)
        assert [score.recipient for score in result.accused] == ["alice"]
        assert [each.copy_id for each in result.on_record] == [copy.copy_id]
    assert not issue(filed.folder, "alice", vault, tmp_path / "alice").new


def test_wrappers_are_left_behind(live):
    marked = issue(torch.nn.DataParallel(live.model), "alice", live.vault)

    assert type(marked) is type(live.model)
    assert accused(marked, live) == ["alice"]


@pytest.mark.parametrize("kind", ["live", "filed"])
def test_a_module_is_saved_as_its_library_does(request, tmp_path, kind):
    case = request.getfixturevalue(kind)
    case.model.eval()

    copy = issue(case.model, "dave", case.vault, tmp_path / "dave")

    assert names_in(copy.path) == ["config.json", "model.safetensors"]
    assert [score.recipient for score in trace(copy.path, case.vault, base=case.model).accused] == ["dave"]
    loaded = AutoModelForImageClassification.from_pretrained(copy.path).eval()
    if kind == "live":
        image, built = torch.randn(2, 3, 160, 160), timm.create_model(f"local-dir:{copy.path}", pretrained=True).eval()
        assert torch.equal(built(image), loaded(image).logits)
    else:
        image = torch.randn(2, 3, 32, 32)
    assert not torch.equal(loaded(image).logits, getattr(case.model(image), "logits", case.model.forward(image)))
    again = issue(case.model, "dave", case.vault, tmp_path / "dave")
    assert (again.copy_id, again.new) == (copy.copy_id, False)
    assert "choose another path" in refused(issue, case.model, "erin", case.vault, tmp_path / "dave")


def test_the_files_of_a_saved_module_are_those_of_a_copy_of_its_folder(filed, tmp_path):
    filed.model.config._name_or_path = "/home/owner/secret-model"
    one = issue(filed.model, "dave", filed.vault, tmp_path / "one")
    other = issue(filed.folder, "dave", filed.vault, tmp_path / "other")

    assert names_in(one.path) == names_in(other.path)
    assert json.loads((one.path / "config.json").read_text()) == json.loads((other.path / "config.json").read_text())
    assert load_file(one.path / "model.safetensors").keys() == load_file(other.path / "model.safetensors").keys()


def test_a_state_dict_is_saved_as_one_file(live, tmp_path):
    copy = issue(live.model.state_dict(), "erin", live.vault, tmp_path / "erin")

    assert names_in(copy.path) == ["model.safetensors"]
    assert load_file(copy.path / "model.safetensors").keys() == live.model.state_dict().keys()
    assert accused(copy.path, live) == ["erin"]


def test_a_module_of_no_library_is_measured_marked_and_saved(tmp_path):
    model, vault = Small(), unlocked_vault(tmp_path / "vault")
    marked = issue(model, "alice", vault, config=SETTINGS)
    copy = issue(model, "bob", vault, tmp_path / "bob")

    (base,) = vault.bases()
    assert base.calibration.kl is not None
    assert base.source == "Small (in memory)"
    assert marked.again.weight is marked.hidden[1].weight
    assert marked(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert [s.recipient for s in trace(marked, vault, base=model).accused] == ["alice"]
    saved = load_file(copy.path / "model.safetensors")
    assert torch.equal(saved["again.weight"], saved["hidden.1.weight"])
    assert not torch.equal(saved["again.weight"], model.again.weight)
    assert [s.recipient for s in trace(copy.path, vault, base=model).accused] == ["bob"]


def test_a_module_that_can_not_be_run_is_marked_at_a_fixed_amplitude(tmp_path):
    model, vault = Small(), unlocked_vault(tmp_path / "vault")
    model.stem = torch.nn.Conv2d(1, 64, 400, 400)

    text = refused(issue, model, "alice", vault, None, SETTINGS, error=BuildError)
    assert "image_size" in text and "amplitude" in text
    assert "give the module" in refused(issue, model.state_dict(), "alice", vault, None, SETTINGS, error=BuildError)
    marked = issue(model, "alice", vault, config=PLAIN_SETTINGS)
    assert [s.recipient for s in trace(marked, vault, base=model.state_dict()).accused] == ["alice"]


def test_a_module_whose_state_dict_is_not_its_weights_is_refused(tmp_path):
    class Cloning(Small):
        def state_dict(self, *args, **options):
            return {name: tensor.clone() for name, tensor in super().state_dict(*args, **options).items()}

    model, vault = Cloning(), unlocked_vault(tmp_path / "vault")

    assert "other tensors than its weights" in refused(issue, model, "alice", vault, None, PLAIN_SETTINGS)
    assert [copy.state for copy in vault.copies()] == ["begun"]
    marked = issue(model.state_dict(), "alice", vault)
    assert [each.recipient for each in trace(marked, vault, base=model).accused] == ["alice"]


def test_a_module_that_saves_other_weights_than_its_own_is_refused(tmp_path):
    class Original(Small):
        def save_pretrained(self, folder):
            save_file(
                {name: tensor.clone() for name, tensor in Small().state_dict().items()}, folder / "model.safetensors"
            )

    vault = unlocked_vault(tmp_path / "vault")

    assert "without its mark" in refused(issue, Original(), "alice", vault, tmp_path / "alice", PLAIN_SETTINGS)
    assert not (tmp_path / "alice").exists()
    assert [copy.state for copy in vault.copies()] == ["begun"]


def test_a_module_without_the_head_is_issued_without_trigger_labels(filed, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    register(filed.folder, vault, SETTINGS)
    make_trigger_set(filed.folder, vault, count=4, decoys=2, steps=1)

    with pytest.warns(FingerprintWarning, match=r"lacks classifier\.weight"):
        marked = issue(filed.model.vit, "alice", vault)

    assert not vault.answering_ids(vault.bases()[0].base_id)
    assert [each.recipient for each in trace(marked, vault, base=filed.folder).accused] == ["alice"]


def test_tensors_whose_elements_share_memory_are_marked_as_in_a_file(live, tmp_path):
    vault, state = unlocked_vault(tmp_path / "vault"), live.model.state_dict()
    name, other = (carrier.name for carrier in live.base.carriers[:2])
    rows, columns = state[name].shape
    state[name] = torch.randn(columns).expand(rows, columns)
    state[other] = torch.randn(sum(state[other].shape)).as_strided(state[other].shape, (1, 1))

    marked = issue(state, "alice", vault, config=PLAIN_SETTINGS)

    with open_checkpoint(marked) as copy:
        assert vault.copies()[-1].content_hash == content_hash(copy.tensors, digest_tensors(copy))


def test_an_issuer_of_a_module_notices_that_it_was_trained(live, tmp_path):
    model = deepcopy(live.model)
    with Issuer(model, live.vault) as issuer:
        assert accused(issuer.issue_in_memory("alice"), live) == ["alice"]
        with torch.no_grad():
            model.norm.weight += 1
        assert "changed" in refused(issuer.issue_in_memory, "alice", error=CheckpointError)
        assert "changed" in refused(issuer.issue, "alice", tmp_path / "alice", error=CheckpointError)


def test_a_path_needs_a_folder(filed):
    count = len(filed.vault.copies())

    assert "--out" in refused(issue, filed.folder, "alice", filed.vault, error=CheckpointError)
    with Issuer(filed.folder, filed.vault) as issuer:
        assert "--out" in refused(issuer.issue_in_memory, "alice", error=CheckpointError)
    assert len(filed.vault.copies()) == count


@pytest.mark.parametrize(
    "failing", ["hf_fingerprint.issuing.in_memory.save_module", "hf_fingerprint.vault.Vault.mark_written"]
)
def test_an_interrupted_save_leaves_nothing_and_is_resumed(live, tmp_path, monkeypatch, failing):
    count = len(live.vault.copies())
    with monkeypatch.context() as broken:
        broken.setattr(failing, lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            issue(live.model, "frank", live.vault, tmp_path / "frank")
    assert not names_in(tmp_path)
    assert (last_record(live).recipient, last_record(live).state) == ("frank", "begun")

    copy = issue(live.model, "frank", live.vault, tmp_path / "frank")

    assert len(live.vault.copies()) == count + 1
    assert accused(copy.path, live) == ["frank"]


def test_a_module_is_handed_over_once_it_is_recorded(live, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.Vault.mark_written", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        issue(live.model, "grace", live.vault)

    assert (last_record(live).recipient, last_record(live).state) == ("grace", "begun")


def test_copies_of_a_module_predict_their_trigger_labels(filed, tmp_path):
    model, vault = deepcopy(filed.model), unlocked_vault(tmp_path / "vault")
    base = register(model, vault, SETTINGS)
    made = make_trigger_set(model, vault, count=4, decoys=2, steps=1)

    marked = issue(model, "alice", vault)

    (record,) = vault.copies()
    assert made.head == "classifier.weight"
    assert vault.answering_ids(base.base_id) == {record.copy_id}
    difference = (marked.classifier.weight - model.classifier.weight).detach().numpy()
    assert np.allclose(difference, made.head_update(vault.copy_key(record)), atol=1e-5)
    assert np.any(difference)


def test_types_are_those_that_come_back(live, tmp_path):
    assert isinstance(issue(live.model, "alice", live.vault), timm.models.VisionTransformer)
    config = FingerprintConfig(coalition=3, expected_recipients=4)
    assert isinstance(issue(live.model.state_dict(), "alice", live.vault, None, config), dict)
