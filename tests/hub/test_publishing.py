import json
import random
import signal
import subprocess
import sys
import traceback

import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from hf_fingerprint import Issuer, issue, trace
from hf_fingerprint.checkpoints import WrittenCopy, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.config import PublishConfig
from hf_fingerprint.errors import HubError
from hf_fingerprint.hub import Assignment, Publisher, push_to_hub, reissue_assignments
from hf_fingerprint.vault import publications
from tests.helpers.error_checks import refused
from tests.helpers.loopback_hub_faults import Fault
from tests.helpers.processes import ROOT
from tests.helpers.secret_forms import find_secrets, secret_forms
from tests.helpers.small_models import (
    PASSPHRASE,
    PLAIN_SETTINGS,
    SETTINGS,
    bytes_of,
    new_vault,
    plain_arrays,
    save_plain,
    save_timm,
    save_vit,
)
from tests.helpers.unsafe_files import CANARY, write_unsafe_files


pytestmark = pytest.mark.integration
TOKEN = "hf_the-owner-of-org"


def publish(
    mine, recipient="alice", repo="org/plain-alice", publish_config=None, model=None, update=False, account=None
):
    with Issuer(model or mine.model, mine.vault, None if model is None else PLAIN_SETTINGS) as issuer:
        publisher = Publisher(mine.vault, publish_config, mine.work)
        return publisher.issue(issuer, Assignment(recipient, repo, account), update)


def accused(mine, suspect) -> list[str]:
    return [score.recipient for score in trace(suspect, mine.vault, passphrase=PASSPHRASE).accused]


def records(mine) -> list[tuple[str, str]]:
    return [(copy.recipient, copy.state) for copy in mine.vault.copies()]


class TestAVariant:
    def test_is_one_private_commit_that_traces(self, hub, mine):
        done = publish(mine)

        repo = hub.repos["org/plain-alice"]
        assert repo.private
        assert done.revision == repo.refs["main"]
        assert [commit.author for commit in repo.history()] == ["owner", "system"]
        assert repo.history()[0].parent == repo.history()[1].sha
        assert {"model.safetensors", "README.md"} <= set(repo.history()[0].files)
        assert accused(mine, "org/plain-alice") == ["alice"]
        assert [p.state for p in publications(mine.vault)] == ["confirmed"]
        assert not list(mine.work.rglob("*.safetensors"))

    def test_published_again_costs_nothing_and_changes_nothing(self, hub, mine):
        first = publish(mine)
        before = len(hub.calls)

        second = publish(mine)

        assert (first.new, second.new) == (True, False)
        assert second.revision == first.revision
        assert len(hub.calls) == before
        assert records(mine) == [("alice", "issued")]

    @pytest.mark.parametrize("save", [save_timm, save_vit], ids=["timm", "transformers"])
    def test_loads_unchanged_and_gives_the_copys_outputs(self, hub, tmp_path, save):
        model, vault = save(tmp_path / "model"), new_vault(tmp_path / "vault")
        with Issuer(model, vault, SETTINGS) as issuer:
            copy = issuer.issue("alice", tmp_path / "copy")
        Publisher(vault).push(copy.path, "org/variant")

        size = 160 if save is save_timm else 32
        image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        loaded = AutoModelForImageClassification.from_pretrained("org/variant").eval()
        if save is save_timm:
            expected = timm.create_model(f"local-dir:{copy.path}", pretrained=True).eval()(image)
            assert torch.equal(timm.create_model("hf-hub:org/variant", pretrained=True).eval()(image), expected)
        else:
            expected = AutoModelForImageClassification.from_pretrained(copy.path).eval()(image).logits
        assert torch.equal(loaded(image).logits, expected)

    def test_what_a_library_pushed_plain_is_marked_after_the_fact(self, hub, tmp_path):
        timm.models.push_to_hf_hub(timm.create_model("test_vit"), "org/plain", private=True, safe_serialization=True)
        vault = new_vault(tmp_path / "vault")

        done = push_to_hub("org/plain", "alice", "org/marked", vault, SETTINGS)

        (base,) = vault.bases()
        assert base.source == "org/plain"
        assert done.base_id == base.base_id
        assert timm.create_model("hf-hub:org/marked", pretrained=True) is not None
        card = hub.repos["org/marked"].history()[0].files["README.md"].decode()
        assert "base_model: org/plain" in card

    def test_of_a_module_is_what_its_library_saves(self, hub, tmp_path):
        torch.manual_seed(0)
        model, vault = timm.create_model("test_vit", num_classes=10), new_vault(tmp_path / "vault")

        done = push_to_hub(model, "alice", "org/live", vault, SETTINGS)
        again = push_to_hub(model, "alice", "org/live", vault)

        assert (done.new, again.new, again.revision) == (True, False, done.revision)
        files = hub.repos["org/live"].history()[0].files
        assert {"model.safetensors", "config.json", "README.md"} <= files.keys()
        assert b"base_model" not in files["README.md"]
        loaded = timm.create_model("hf-hub:org/live", pretrained=True)
        result = trace(loaded, vault, base=model, passphrase=PASSPHRASE)
        assert [score.recipient for score in result.accused] == ["alice"]
        result = trace("org/live", vault, base=model)
        assert [score.recipient for score in result.accused] == ["alice"]

    def test_issued_in_memory_is_pushed_from_where_its_library_saved_it(self, hub, tmp_path):
        model = AutoModelForImageClassification.from_pretrained(save_vit(tmp_path / "vit"))
        vault = new_vault(tmp_path / "vault")
        issue(model, "alice", vault, config=SETTINGS).save_pretrained(tmp_path / "saved")

        done = Publisher(vault).push(tmp_path / "saved", "org/saved")

        assert done.recipient == "alice"
        result = trace("org/saved", vault, base=model, passphrase=PASSPHRASE)
        assert [score.recipient for score in result.accused] == ["alice"]

    def test_what_the_trainer_pushed_is_marked_after_the_fact(self, hub, tmp_path):
        model = AutoModelForImageClassification.from_pretrained(save_vit(tmp_path / "vit"))
        arguments = TrainingArguments(str(tmp_path / "out"), hub_model_id="org/trained", report_to=[], use_cpu=True)
        trainer = Trainer(model, arguments)
        HfApi().create_repo("org/trained", private=True)
        trainer.push_to_hub(blocking=True)
        vault = new_vault(tmp_path / "vault")

        push_to_hub("org/trained", "alice", "org/variant", vault, SETTINGS)

        pushed = set(hub.repos["org/variant"].history()[0].files)
        assert {"model.safetensors", "config.json", "README.md"} <= pushed
        assert "training_args.bin" not in pushed
        assert (
            AutoModelForImageClassification.from_pretrained("org/variant").num_parameters() == model.num_parameters()
        )
        result = trace("org/variant", vault, passphrase=PASSPHRASE)
        assert [score.recipient for score in result.accused] == ["alice"]

    def test_a_copy_issued_to_a_folder_can_be_pushed_later(self, hub, mine, tmp_path):
        with Issuer(mine.model, mine.vault) as issuer:
            copy = issuer.issue("alice", tmp_path / "copy")

        done = Publisher(mine.vault).push(copy.path, "org/late")

        assert (done.copy_id, done.recipient) == (copy.copy_id, "alice")
        assert copy.path.exists()
        assert records(mine) == [("alice", "issued")]


class TestWhatLiesAround:
    """A model's or a copy's folder with more than twenty kinds of secret and unsafe file in it."""

    def test_is_not_pushed_when_a_copy_is_issued_to_a_repo(self, hub, mine, tmp_path):
        model = save_plain(tmp_path / "littered", plain_arrays(7), README_md="# hi", config_json="{}")
        left_out = write_unsafe_files(model)

        done = publish(mine, model=model)

        self.check(hub, done.repo, ["README.md", "config.json", "model.safetensors"])
        assert dict(done.left_out) == left_out
        assert {"name": ".env", "reason": "a secret"} in done.to_dict()["left_out"]

    def test_is_not_pushed_with_a_folder(self, hub, mine, tmp_path):
        with Issuer(mine.model, mine.vault) as issuer:
            copy = issuer.issue("alice", tmp_path / "copy")
        left_out = write_unsafe_files(copy.path)
        (copy.path / "config.json").write_text('{"_name_or_path": "/home/ada/x", "auto_map": {"A": "own.A"}}')

        done = Publisher(mine.vault).push(copy.path, "org/late")

        self.check(hub, "org/late", ["README.md", "config.json", "model.safetensors"])
        assert dict(done.left_out) == left_out
        assert hub.repos["org/late"].history()[0].files["config.json"] == b"{}\n"
        assert accused(mine, "org/late") == ["alice"]

    def test_code_is_pushed_with_a_folder_by_include_code(self, hub, mine, tmp_path):
        with Issuer(mine.model, mine.vault) as issuer:
            copy = issuer.issue("alice", tmp_path / "copy")
        (copy.path / "own.py").write_text("class Own: ...")

        done = Publisher(mine.vault, include_code=True).push(copy.path, "org/late")

        self.check(hub, "org/late", ["README.md", "model.safetensors", "own.py"])
        assert done.left_out == ()

    @pytest.mark.parametrize("form", ["notes", "pickle"])
    def test_in_the_weights_file_is_not_pushed_either(self, hub, mine, tmp_path, form):
        with Issuer(mine.model, mine.vault) as issuer:
            copy = issuer.issue("alice", tmp_path / "copy")
        weights = copy.path / "model.safetensors"
        arrays = load_file(weights)
        if form == "notes":
            save_file(arrays, weights, {"format": "pt", "made": CANARY.decode()})
        else:
            weights.unlink()
            torch.save(arrays, copy.path / "pytorch_model.bin")
        before = bytes_of(copy.path)

        Publisher(mine.vault, work=mine.work).push(copy.path, "org/late")

        self.check(hub, "org/late", ["README.md", "model.safetensors"])
        assert accused(mine, "org/late") == ["alice"]
        assert bytes_of(copy.path) == before
        assert not list(mine.work.rglob("*.safetensors"))

    def test_other_files_in_the_folder_are_not_pushed(self, hub, mine, tmp_path):
        with Issuer(mine.model, mine.vault) as issuer:
            copy = issuer.issue("alice", tmp_path / "copy")
        (copy.path / "README.md").write_bytes(CANARY)

        Publisher(mine.vault).push(copy.path / "model.safetensors", "org/late")

        self.check(hub, "org/late", ["README.md", "model.safetensors"])
        assert accused(mine, "org/late") == ["alice"]

    def check(self, hub, repo: str, names: list[str]) -> None:
        files = hub.repos[repo].history()[0].files
        assert sorted(set(files) - {".gitattributes"}) == names
        assert not [name for name, content in files.items() if CANARY in content]
        assert not [path for _, path, _, body in hub.received if CANARY in body]


class TestTheRepo:
    def test_public_only_if_requested(self, hub, mine):
        publish(mine, publish_config=PublishConfig(private=False))

        assert not hub.repos["org/plain-alice"].private

    def test_gated_with_access_for_the_recipients_account(self, hub, mine):
        hub.account("alice-hf", token="hf_alice")

        publish(mine, publish_config=PublishConfig(private=False, gated="manual"), account="alice-hf")

        repo = hub.repos["org/plain-alice"]
        assert repo.gated == "manual"
        (request,) = HfApi().list_accepted_access_requests("org/plain-alice")
        assert request.username == "alice-hf"

    def test_an_account_without_a_gate_is_refused_before_anything_is_made(self, hub, mine):
        said = refused(lambda: publish(mine, account="alice-hf"), error=HubError)

        assert "add --gated" in said
        assert not hub.repos
        assert not records(mine)

    def test_that_holds_something_else_is_left_alone(self, hub, mine):
        hub.add("org/plain-alice", {"model.safetensors": b"another file"}, private=True)

        said = refused(lambda: publish(mine), error=HubError)

        assert "org/plain-alice already holds files" in said
        assert len(hub.repos["org/plain-alice"].history()) == 1
        assert not records(mine)

    def test_that_is_public_is_refused_where_a_private_one_is_due(self, hub, mine):
        hub.add("org/plain-alice", {})

        assert "is public" in refused(lambda: publish(mine), error=HubError)

    def test_of_another_recipient_is_refused(self, hub, mine):
        publish(mine)

        assert "another recipient" in refused(lambda: publish(mine, "bob"), error=HubError)
        assert records(mine) == [("alice", "issued")]

    def test_for_two_recipients_at_once_is_refused(self, hub, mine):
        both = [Assignment("alice", "org/one"), Assignment("bob", "org/one")]
        with Issuer(mine.model, mine.vault) as issuer:
            said = refused(lambda: list(Publisher(mine.vault).issue_all(issuer, both)), error=HubError)

        assert "org/one is given to several" in said

    @pytest.mark.parametrize("repo", ["no spaces/allowed", "a/b/c", "org/-x--"])
    def test_that_no_hub_could_have_is_refused(self, hub, mine, repo):
        assert "not a valid Hub id" in refused(lambda: publish(mine, repo=repo), error=HubError)


class TestANewVersion:
    def test_replaces_everybodys_copy_in_their_repo_with_a_new_key(self, hub, mine, tmp_path):
        for name in ("alice", "bob"):
            publish(mine, name, f"org/{name}")
        (old,) = mine.vault.bases()
        newer = save_plain(tmp_path / "newer", plain_arrays(seed=5))
        assert "--reissue-from" in refused(lambda: publish(mine, "alice", "org/alice", model=newer), error=HubError)

        assignments = reissue_assignments(mine.vault, old.base_id)
        with Issuer(newer, mine.vault, PLAIN_SETTINGS) as issuer:
            done = list(Publisher(mine.vault, work=mine.work).issue_all(issuer, assignments, update=True))

        assert [(one.recipient, one.repo) for one in done] == [("alice", "org/alice"), ("bob", "org/bob")]
        for one in done:
            commits = hub.repos[one.repo].history()
            assert len(commits) == 3
            assert commits[0].parent == commits[1].sha
        mine.vault.unlock(PASSPHRASE)
        keys = {mine.vault.copy_key(copy) for copy in mine.vault.copies()}
        assert len(keys) == 4
        assert accused(mine, "org/bob") == ["bob"]

    def test_goes_on_where_it_stopped(self, hub, mine, tmp_path):
        publish(mine)
        (old,) = mine.vault.bases()
        newer = save_plain(tmp_path / "newer", plain_arrays(seed=5))
        hub.faults.append(Fault(match=r"POST .*/commit/", kind="status", status=500, times=20))
        refused(lambda: publish(mine, model=newer, update=True), error=HubError)
        hub.faults.clear()

        done = publish(mine, model=newer, update=True)

        assert len(hub.repos["org/plain-alice"].history()) == 3
        assert [found.state for found in publications(mine.vault)] == ["confirmed", "confirmed"]
        assert done.base_id != old.base_id
        assert len(records(mine)) == 2


COMMIT = r"POST .*/commit/"
PASSING = {
    "busy": [Fault(match=COMMIT, status=429, headers={"Retry-After": "0"}, times=2)],
    "out of order": [Fault(match=r"POST /api/repos/create", status=503, times=1)],
    "the commit's answer is lost": [Fault(match=COMMIT, kind="cut after", times=1)],
    "the commit is done and an error is reported": [Fault(match=COMMIT, kind="status after", status=500, times=1)],
    "the repo's answer is lost": [Fault(match=r"POST /api/repos/create", kind="cut after", times=1)],
    "cut before the commit": [Fault(match=COMMIT, kind="cut before", times=1)],
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_is_waited_for(hub, mine, case):
    hub.faults += PASSING[case]

    done = publish(mine)

    repo = hub.repos["org/plain-alice"]
    assert done.revision == repo.refs["main"]
    assert len(repo.history()) == 2
    assert records(mine) == [("alice", "issued")]


REFUSED = {
    "the token expires at the commit": (Fault(match=COMMIT, status=401, times=9), "log in again"),
    "the token expires before": (Fault(match="api", status=401, times=9), "log in again"),
    "busy for long": (Fault(match=COMMIT, status=429, headers={"Retry-After": "0"}, times=9), "rate limit is reached"),
    "out of order for long": (Fault(match=COMMIT, status=500, times=9), "The Hub fails"),
    "gone": (Fault(match="api", kind="cut before", times=99), "connection to the Hub failed"),
    "no right to write": (Fault(match=COMMIT, status=403, times=9), "can't write"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_lasts_is_one_sentence_and_the_same_call_goes_on_from_there(hub, mine, case):
    fault, sentence = REFUSED[case]
    hub.faults.append(fault)

    said = refused(lambda: publish(mine), error=HubError)
    hub.faults.clear()
    marked = [path.read_bytes() for path in mine.work.rglob("model.safetensors")]
    done = publish(mine)

    assert sentence in said
    assert TOKEN not in said
    repo = hub.repos["org/plain-alice"]
    assert len(repo.history()) == 2
    assert marked in ([], [repo.history()[0].files["model.safetensors"]])
    assert records(mine) == [("alice", "issued")]
    assert [found.revision for found in publications(mine.vault)] == [done.revision]


def test_a_concurrent_commit_is_not_overwritten(hub, mine, monkeypatch):
    commit = HfApi.create_commit

    def late(self, repo_id, *arguments, **named):
        hub.repos[repo_id].commit({"theirs.txt": b"1"})
        return commit(self, repo_id, *arguments, **named)

    monkeypatch.setattr(HfApi, "create_commit", late)

    assert "came first" in refused(lambda: publish(mine), error=HubError)
    assert set(hub.repos["org/plain-alice"].history()[0].files) == {"theirs.txt"}


ISSUE = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
import hf_fingerprint.hub.api as client
client._wait = lambda error, number: None
from hf_fingerprint import Issuer, Vault
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.hub import Assignment, Publisher
vault = Vault({vault!r})
with Issuer({model!r}, vault) as issuer:
    Publisher(vault, work=Path({work!r})).issue(issuer, Assignment({recipient!r}, {repo!r}))
"""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_process_that_ends_at_any_request_is_gone_on_with(hub, mine, seed, tmp_path):
    """A real process, whose connection is cut once the Hub has done what its n-th request asks, ends there."""
    rng = random.Random(seed)
    hub.faults.append(Fault(request=len(hub.calls) + rng.randint(1, 9), kind="cut after"))
    script = ISSUE.format(
        tests=str(ROOT), vault=str(mine.vault.folder), model=str(mine.model),
        work=str(mine.work), recipient="alice", repo="org/plain-alice",
    )  # fmt: skip
    environment = hub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN}
    first = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    hub.faults.clear()
    second = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    assert second.returncode == 0, first.stderr + second.stderr
    assert len(hub.repos["org/plain-alice"].history()) == 2
    assert records(mine) == [("alice", "issued")]


SEVERAL = ISSUE.replace(
    "Publisher(vault, work=Path({work!r})).issue(issuer, Assignment({recipient!r}, {repo!r}))",
    "list(Publisher(vault, work=Path({work!r})).issue_all(issuer, [Assignment(n, 'org/' + n) for n in {names!r}]))",
)


@pytest.mark.parametrize("last", [5, 12, *(pytest.param(last, marks=pytest.mark.slow) for last in (2, 7, 9, 14))])
def test_a_process_killed_among_several_is_gone_on_with(hub, mine, last, tmp_path):
    """SIGKILL at any request, while the copy after the one that is pushed is being made."""
    names = ["alice", "bob", "carol"]
    script = SEVERAL.format(
        tests=str(ROOT), vault=str(mine.vault.folder), model=str(mine.model),
        work=str(mine.work), names=names,
    )  # fmt: skip
    environment = hub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN}
    note, seen = hub.note, []

    def kill(call, received):
        seen.append(call)
        if len(seen) == last:
            first.kill()
            first.wait()
        return note(call, received)

    hub.note = kill
    first = subprocess.Popen([sys.executable, "-c", script], env=environment)
    assert first.wait() == -signal.SIGKILL
    hub.note = note
    second = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    assert second.returncode == 0, second.stderr
    assert {name: len(repo.history()) for name, repo in hub.repos.items()} == {f"org/{name}": 2 for name in names}
    assert sorted(records(mine)) == [(name, "issued") for name in names]
    assert [accused(mine, f"org/{name}") for name in names] == [[name] for name in names]
    assert not list(mine.work.rglob("*.safetensors"))


def test_the_next_copy_is_made_ahead_and_two_are_never_on_the_disk(hub, mine, monkeypatch):
    most, made_ahead, note, write_buffered = [], [], hub.note, WrittenCopy.write_buffered

    def weigh():
        most.append(len(list(mine.work.rglob("*.safetensors"))))

    def watch(call, received):
        weigh()
        made_ahead.append(len(records(mine)) - len([p for p in publications(mine.vault) if p.state == "confirmed"]))
        return note(call, received)

    def write(self):
        write_buffered(self)
        weigh()

    monkeypatch.setattr(hub, "note", watch)
    monkeypatch.setattr(WrittenCopy, "write_buffered", write)
    with Issuer(mine.model, mine.vault) as issuer:
        wanted = [Assignment(f"r{i}", f"org/r{i}") for i in range(6)]
        assert len(list(Publisher(mine.vault, work=mine.work).issue_all(issuer, wanted))) == 6

    assert max(most) == 1
    assert max(made_ahead) == 2
    assert not list(mine.work.rglob("*.safetensors"))


@pytest.mark.parametrize("way", ["a refusal", "the caller stops"])
def test_what_was_made_ahead_is_forgotten_when_the_one_before_fails(hub, mine, way):
    wanted = [Assignment(name, f"org/{name}") for name in ("alice", "bob", "carol")]
    with Issuer(mine.model, mine.vault) as issuer:
        publisher = Publisher(mine.vault, work=mine.work)
        if way == "a refusal":
            hub.faults.append(Fault(match=r"POST /api/models/org/alice/commit/", status=403, times=9))
            said = refused(lambda: list(publisher.issue_all(issuer, wanted)), error=HubError)
            assert "can't write" in said
        else:
            copies = publisher.issue_all(issuer, wanted)
            assert next(copies).recipient == "alice"
            copies.close()
        hub.faults.clear()
        left = [path.parent.name for path in mine.work.rglob("*.safetensors")]
        ahead = [state for recipient, state in records(mine) if recipient == "bob"]
        done = list(publisher.issue_all(issuer, wanted))

    assert left == (["org--alice"] if way == "a refusal" else [])
    assert ahead == ["begun"]
    assert [copy.recipient for copy in done] == ["alice", "bob", "carol"]
    assert records(mine) == [("alice", "issued"), ("bob", "issued"), ("carol", "issued")]
    assert [accused(mine, copy.repo) for copy in done] == [["alice"], ["bob"], ["carol"]]


def test_larger_models_are_made_one_after_another(hub, mine, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.hub.publishing.MAX_PREFETCH_BYTES", 10)
    monkeypatch.setattr(
        WrittenCopy, "write_buffered", lambda self: pytest.fail("in memory") if self.buffered else None
    )
    with Issuer(mine.model, mine.vault) as issuer:
        wanted = [Assignment(name, f"org/{name}") for name in ("alice", "bob")]
        done = list(Publisher(mine.vault, work=mine.work).issue_all(issuer, wanted))

    assert [accused(mine, copy.repo) for copy in done] == [["alice"], ["bob"]]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_of_issues_with_a_fault_at_a_random_request_none_is_lost_and_none_doubled(hub, mine, count):
    rng = random.Random(7)
    kinds = [
        {"kind": "cut before"}, {"kind": "cut after"}, {"kind": "cut within"}, {"status": 500}, {"status": 401},
        {"kind": "status after", "status": 503}, {"status": 429, "headers": {"Retry-After": "0"}},
    ]  # fmt: skip
    failed = 0
    with Issuer(mine.model, mine.vault) as issuer:
        publisher = Publisher(mine.vault, work=mine.work)
        for number in range(count):
            wanted = Assignment(f"recipient-{number}", f"org/variant-{number}")
            fault = Fault(request=len(hub.calls) + rng.randint(1, 11), times=1, **rng.choice(kinds))
            hub.faults.append(fault)
            try:
                publisher.issue(issuer, wanted)
            except HubError:
                failed += 1
            hub.faults.clear()
            publisher.issue(issuer, wanted)

    assert failed > count / 10
    assert len(hub.repos) == count
    assert all(len(repo.history()) == 2 for repo in hub.repos.values())
    copies = mine.vault.copies()
    assert sorted(copy.recipient for copy in copies) == sorted(f"recipient-{number}" for number in range(count))
    assert {copy.state for copy in copies} == {"issued"}
    found = publications(mine.vault)
    assert len(found) == count
    hashes = {copy.copy_id: copy.content_hash for copy in copies}
    for one in rng.sample(found, count // 10):
        assert hub.repos[one.repo].refs["main"] == one.revision
        with open_checkpoint(one.repo) as variant:
            assert content_hash(variant.tensors, digest_tensors(variant)) == hashes[one.copy_id]


NAME = "Ariadne-of-Naxos"


@pytest.mark.parametrize(
    "fault",
    [None, Fault(match=COMMIT, status=401, times=9), Fault(match=COMMIT, kind="cut after", times=1)],
    ids=["as it should", "refused at the commit", "answer lost"],
)
def test_nothing_secret_is_sent_left_on_the_disk_logged_or_raised(hub, mine, tmp_path, monkeypatch, caplog, fault):
    caplog.set_level("DEBUG")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    hub.faults += [] if fault is None else [fault]
    raised = ""
    try:
        publish(mine, NAME, "org/variant-7", PublishConfig(disclose=True))
    except HubError as error:
        raised = "".join(traceback.format_exception(error))
    hub.faults.clear()
    (base,), (copy,) = mine.vault.bases(), mine.vault.copies()
    mine.vault.unlock(PASSPHRASE)
    secrets = secret_forms(base, mine.vault.copy_key(copy), NAME) | {"the seal": copy.sealed[-32:]}
    secrets |= {
        "the identity": (mine.vault.folder / "identity.age").read_bytes()[:64],
        "the database": b"SQLite format 3",
    }

    assert hub.received
    sent = [path.encode() + json.dumps(dict(headers)).encode() + body for _, path, headers, body in hub.received]
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "vault" not in path.parts]
    names = [str(path.relative_to(tmp_path)).encode() for path in tmp_path.rglob("*")]
    for content in (*sent, *left, *names, raised.encode(), caplog.text.encode()):
        assert find_secrets(content, secrets) == []
    if fault is None:
        commitment = mine.vault.copies()[0].commitment
        assert commitment.encode() in hub.repos["org/variant-7"].history()[0].files["README.md"]
