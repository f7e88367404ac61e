"""A trace opens the ancestors of the bases that it compares, says whether it could, and reads the rest."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from hf_fingerprint import Outcome, issue, register, trace, verify
from hf_fingerprint.errors import VaultError
from hf_fingerprint.tracing import ancestor_files, local_files, ranged
from tests.helpers.error_checks import refused
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.small_models import PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


pytestmark = pytest.mark.integration
PUBLIC = plain_arrays(seed=1)


def drifted(arrays, seed, share=0.1):
    rng = np.random.default_rng(seed)
    return {
        name: (a + share * a.std() * rng.standard_normal(a.shape)).astype(a.dtype) if a.ndim > 1 and a.size else a
        for name, a in arrays.items()
    }


BASE = drifted(PUBLIC, 2)


def shown(result):
    return "\n".join(block for block in result.blocks() if isinstance(block, str))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A vault with a base, its ancestor on record, and a copy."""
    root = tmp_path_factory.mktemp("ancestors")
    vault, public = unlocked_vault(root / "vault"), save_plain(root / "public", PUBLIC)
    model = save_plain(root / "model", BASE)
    base = register(model, vault, PLAIN_SETTINGS, ancestor=public)
    copy = issue(model, "alice", vault, root / "alice").path
    return SimpleNamespace(root=root, vault=vault, base=base, public=public, model=model, copy=copy)


@pytest.fixture
def opened(template, monkeypatch):
    """The ancestors that are opened, and those that are handed to the extraction, in their order."""
    seen = SimpleNamespace(bases=[], given=[], readers=[])
    opening, extract = ancestor_files.open_ancestor, local_files.extract

    def open_noting(base, *arguments):
        seen.bases.append(base.base_id)
        return opening(base, *arguments)

    def extract_noting(*arguments):
        seen.readers.append(arguments[-1])
        seen.given.append(None if arguments[-1] is None else arguments[-1].source.name)
        return extract(*arguments)

    monkeypatch.setattr(ancestor_files, "open_ancestor", open_noting)
    monkeypatch.setattr(local_files, "extract", extract_noting)
    return seen


@pytest.fixture
def without(template):
    """The ancestor's files are gone for the test."""
    hidden = template.public.with_name("hidden")
    template.public.rename(hidden)
    yield hidden
    hidden.rename(template.public)


def test_the_open_ancestor_is_handed_to_the_extraction_and_listed(template, opened):
    result = trace(template.copy, template.vault)

    assert result.outcome is Outcome.ACCUSED
    assert opened.given == [str(template.public)]
    assert f"compared with the ancestor of base {template.base.base_id} too, {template.public}" in shown(result)
    (read,) = result.to_dict()["bases_read"]
    assert (read["ancestor"], read["ancestor_problem"]) == (str(template.public), None)
    with pytest.raises((OSError, IndexError)):  # closed at the end
        opened.readers[0].read(opened.readers[0].tensors["conv.weight"])


def test_a_claim_is_tested_with_it_too(template, opened):
    assert verify(template.copy, "alice", template.vault).outcome is Outcome.ACCUSED

    assert opened.given == [str(template.public)]


def test_a_missing_ancestor_is_said_and_the_copy_is_found_all_the_same(template, opened, without):
    result = trace(template.copy, template.vault)

    assert result.outcome is Outcome.ACCUSED
    assert opened.given == [None]
    (read,) = result.bases_read
    assert read.ancestor == str(template.public)
    assert read.ancestor_problem is not None
    assert "--ancestor" in read.ancestor_problem
    assert f"the ancestor of base {template.base.base_id}, {template.public}, was not used" in shown(result)
    assert "verbatim copy is found without it" in shown(result)


def test_nobody_is_still_an_outcome_without_the_ancestor(template, opened, without):
    result = trace(template.model, template.vault)

    assert result.outcome is Outcome.NOBODY
    assert result.bases_read[0].ancestor_problem is not None


def test_files_that_moved_are_used_where_the_caller_says(template, opened, without):
    result = trace(template.copy, template.vault, ancestor=without)

    assert opened.given == [str(without)]
    assert result.bases_read[0].ancestor_problem is None


def test_another_model_than_the_recorded_ancestor_is_refused(template, opened):
    for other in (template.model, template.root / "nowhere"):
        said = refused(lambda other=other: trace(template.copy, template.vault, ancestor=other), error=VaultError)
        assert template.base.base_id in said
        assert str(other) in said
    assert not opened.given


def test_an_ancestor_that_is_not_on_record_is_refused(template, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    copy = issue(template.model, "bob", vault, tmp_path / "bob", PLAIN_SETTINGS).path

    said = refused(lambda: trace(copy, vault, ancestor=template.public), error=VaultError)

    assert "vault add MODEL --ancestor" in said
    (read,) = trace(copy, vault).bases_read
    assert (read.ancestor, read.ancestor_problem) == (None, None)


def test_the_caller_may_leave_it_out(template, opened):
    result = trace(template.copy, template.vault, ancestor=False)

    assert opened.given == [None]
    assert not opened.bases
    assert "left it out" in shown(result)


def test_a_suspect_that_is_compared_with_no_base_opens_no_ancestor(template, opened, tmp_path):
    other = save_plain(tmp_path / "other", {"a.weight": np.ones((7, 11), np.float32)})

    assert trace(other, template.vault).outcome is Outcome.NOT_COMPARABLE
    assert trace(other, template.vault, ancestor=template.root / "nowhere").outcome is Outcome.NOT_COMPARABLE
    assert not opened.bases


def test_further_passes_over_a_suspect_open_it_once(template, opened, tmp_path):
    twice = {f"one.{name}": a for name, a in BASE.items()}
    twice |= {f"two.{name}": a for name, a in load_file(template.copy / "model.safetensors").items()}

    result = trace(save_plain(tmp_path / "twice", twice), template.vault)

    assert result.outcome is Outcome.ACCUSED
    assert len(opened.given) > 1
    assert set(opened.given) == {str(template.public)}
    assert opened.bases == [template.base.base_id]


def test_a_suspect_on_the_hub_is_read_with_it(template, monkeypatch, tmp_path):
    seen, looks = [], ranged.Looks

    def noting(bases, suspect, ancestors):
        seen.extend(each.source.name for each in ancestors)
        return looks(bases, suspect, ancestors)

    monkeypatch.setattr(ranged, "Looks", noting)
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        hub.add("org/leak", {"model.safetensors": (template.copy / "model.safetensors").read_bytes()})
        result = trace("org/leak", template.vault)

    assert result.outcome is Outcome.ACCUSED
    assert result.bytes_fetched
    assert seen == [str(template.public)]
    assert result.bases_read[0].ancestor == str(template.public)


def test_an_ancestor_on_the_hub_that_is_out_of_reach_is_said(template, monkeypatch, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        hub.add("org/public", {"model.safetensors": save(PUBLIC)})
        copy = issue(template.model, "bob", vault, tmp_path / "bob", PLAIN_SETTINGS, ancestor="org/public").path
        shutil.rmtree(tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        result = trace(copy, vault)

    assert result.outcome is Outcome.ACCUSED
    (read,) = result.bases_read
    assert read.ancestor is not None
    assert read.ancestor.startswith("org/public@")
    assert "org/public" in str(read.ancestor_problem)


def test_two_records_of_one_base_have_each_its_own_ancestor_or_the_others(template, opened, tmp_path):
    vault, other = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "other", drifted(PUBLIC, 3))
    first = register(template.model, vault, PLAIN_SETTINGS)
    second = register(template.model, vault, replace(PLAIN_SETTINGS, amplitude=0.006), remeasure=True, ancestor=other)
    for base, name in ((first, "alice"), (second, "bob")):
        record, key = vault.begin_copy(base, name, f"/copies/{name}")
        vault.mark_written(record, key, "f0" * 32, is_issued=True)

    trace(template.model, vault)
    assert opened.given == [str(other)] * 2

    opened.given.clear()
    vault.set_ancestor(first, template.base.ancestor)
    trace(template.model, vault)
    assert opened.given == [str(template.public), str(other)]

    opened.given.clear()
    trace(template.model, vault, ancestor=template.public)
    assert opened.given == [str(template.public), str(other)]
