"""The public functions with `revision`, `token`, `cache_dir`, `subfolder`, `variant` and `device`, from a base on the
Hub to an accusation."""

import inspect
import io
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import save

from hf_fingerprint import Issuer, issue, trace
from hf_fingerprint.attacks import ChannelPermutation
from hf_fingerprint.blackbox.trigger_set.build import make_trigger_set
from hf_fingerprint.checkpoints import HubOptions
from hf_fingerprint.evaluation import EvaluationData, Testbed, evaluate
from hf_fingerprint.hub import push_to_hub, watch
from hf_fingerprint.models import device_of, run_model, to_device
from hf_fingerprint.registration import lookup_base, register
from hf_fingerprint.tracing import verify
from tests.helpers.error_checks import refused
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.processes import environment, module
from tests.helpers.small_models import (
    PLAIN_SETTINGS,
    SETTINGS,
    build,
    plain_arrays,
    save_vit,
    unlocked_vault,
    vault_bytes,
)


pytestmark = pytest.mark.integration
TOKEN = "hf_theOwnersAndNobodyElses"
HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "variant")
FILES = {
    "vision/model.fp16.safetensors": save(plain_arrays()),
    "vision/config.json": b"{}",
    "vision/preprocessor_config.json": b"{}",
    "model.safetensors": save(plain_arrays(seed=1)),
    "config.json": b'{"of": "another model"}',
}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub whose private repos only an owner may read who is not logged in on this machine."""
    monkeypatch.setattr("hf_fingerprint.checkpoints.ranged_files.FIRST_WAIT", 0)
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        server.account("owner", orgs={"org"}, token=TOKEN)
        yield server


@pytest.fixture
def mine(hub, tmp_path) -> SimpleNamespace:
    """A private base in a folder of a repo, at a tag that is no longer the newest commit; and a vault."""
    repo = hub.add("org/base", FILES, private=True, lfs=True)
    repo.tag("v1")
    repo.commit(FILES | {"vision/model.fp16.safetensors": save(plain_arrays(seed=2))}, lfs=True)
    access = {"token": TOKEN, "cache_dir": tmp_path / "mine"}
    options = {"revision": "v1", "subfolder": "vision", "variant": "fp16", **access}
    return SimpleNamespace(
        vault=unlocked_vault(tmp_path / "vault"), commit=repo.refs["v1"], access=access, options=options, root=tmp_path
    )


def issue_copy(mine: SimpleNamespace) -> Path:
    return issue("org/base", "alice", mine.vault, mine.root / "copy", PLAIN_SETTINGS, **mine.options).path


def leak(hub: LoopbackHub, copy: Path, name: str = "org/leak") -> None:
    hub.add(name, {f"v/{path.name}": path.read_bytes() for path in copy.iterdir()}, private=True, lfs=True)


def test_the_options_are_keywords_at_the_end_in_one_order():
    for function in (issue, Issuer, register, trace, verify, push_to_hub, make_trigger_set, evaluate):
        parameters = list(inspect.signature(function).parameters.values())[-6:]
        assert [each.name for each in parameters] == ["device", *HUB_OPTIONS]
        assert {each.kind for each in parameters} == {inspect.Parameter.KEYWORD_ONLY}
        assert {each.default for each in parameters} == {None}
    assert list(inspect.signature(watch).parameters)[-2:] == ["token", "cache_dir"]


class TestACopyOfAPrivateBase:
    def test_has_the_files_of_the_subfolder_and_its_base_is_recorded_by_commit(self, hub, mine):
        copy = issue_copy(mine)

        (base,) = mine.vault.bases()
        assert (base.source, base.revision) == ("org/base:vision/./model.fp16.safetensors", mine.commit)
        names = {path.name for path in copy.iterdir()}
        assert names == {"model.fp16.safetensors", "config.json", "preprocessor_config.json"}
        assert (copy / "config.json").read_bytes() == b"{}"
        assert lookup_base(mine.vault, f"{base.source}@{base.revision}") == base

    def test_is_traced_though_its_base_is_only_on_the_hub(self, hub, mine):
        leak(hub, issue_copy(mine))
        options = {"subfolder": "v", "token": TOKEN, "cache_dir": mine.root / "elsewhere"}

        result = trace("org/leak", mine.vault, **options)

        assert [score.recipient for score in result.accused] == ["alice"]
        assert (result.suspect, result.revision) == ("org/leak:v/", hub.repos["org/leak"].refs["main"])
        assert 0 < result.bytes_fetched <= result.bytes_total
        assert not Path(constants.HF_HUB_CACHE).exists()
        assert (mine.root / "elsewhere/models--org--base").is_dir()

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_is_verified_in_full_too(self, hub, mine, variant):
        leak(hub, issue_copy(mine))
        options = {"subfolder": "v", "variant": variant, **mine.access}

        assert verify("org/leak", "alice", mine.vault, full=True, **options).accused
        base = "org/base:vision/./model.fp16.safetensors@v1"
        assert verify("org/leak", "alice", mine.vault, base, **options).accused

    def test_can_not_be_traced_without_the_token(self, hub, mine):
        copy = issue_copy(mine)
        leak(hub, copy)

        assert "org/leak" in refused(lambda: trace("org/leak", mine.vault, subfolder="v"))
        assert "org/base" in refused(lambda: trace(copy, mine.vault))
        assert [score.recipient for score in trace(copy, mine.vault, token=TOKEN).accused] == ["alice"]

    def test_is_published_with_the_token_and_names_its_base(self, hub, mine):
        done = push_to_hub("org/base", "alice", "org/base-alice", mine.vault, PLAIN_SETTINGS, **mine.options)

        files = hub.repos["org/base-alice"].commits[done.revision].files
        card = files["README.md"].decode()
        assert "base_model: org/base\n" in card
        assert f"revision `{mine.commit}`, in the folder `vision`" in card
        assert 'from_pretrained("org/base-alice", variant="fp16")' in card
        assert {call.token for call in hub.calls if not call.path.startswith("/lfs-store/")} == {TOKEN}
        assert not Path(constants.HF_HUB_CACHE).exists()

    def test_is_found_by_a_watch_with_the_token(self, hub, mine):
        copy = issue_copy(mine)
        hub.add("org/leak", {"model.safetensors": (copy / "model.fp16.safetensors").read_bytes()}, private=True)

        assert next(watch(["org/leak"], mine.vault)).error is not None
        found = {each.model: each for each in watch(["org"], mine.vault, **mine.access)}
        assert found["org/leak"].accused == ("alice",)
        assert not Path(constants.HF_HUB_CACHE).exists()

    def test_shows_the_token_nowhere(self, hub, mine):
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out), warnings.catch_warnings(record=True) as caught:
            copy = issue_copy(mine)
            leak(hub, copy)
            result = trace("org/leak", mine.vault, subfolder="v", **mine.access)
            with Issuer("org/base", mine.vault, **mine.options) as issuer:
                shown = [repr(issuer), repr(issuer._checkpoint.source), repr(issuer.base)]
            shown += [refused(lambda: trace("org/none", mine.vault, token="hf_wrongToken"))]
        written = b"".join(path.read_bytes() for path in mine.root.rglob("*") if path.is_file())

        for text in (*shown, repr(result), str(result.to_dict()), out.getvalue(), *map(str, caught)):
            assert TOKEN not in text
            assert "hf_wrongToken" not in text
        assert TOKEN.encode() not in vault_bytes(mine.vault) + written


def test_a_model_in_memory_has_no_revision(mine):
    model = torch.nn.Linear(2, 2)

    for function in (
        lambda **options: trace(model, mine.vault, **options),
        lambda **options: issue(model, "alice", mine.vault, mine.root / "copy", **options),
        lambda **options: register(model, mine.vault, **options),
    ):
        assert "revision" in refused(lambda call=function: call(revision="v1"))


class TestAPrivateModelThatRuns:
    @pytest.fixture
    def options(self, hub, tmp_path) -> dict[str, object]:
        folder = save_vit(tmp_path / "vit")
        hub.add("org/vit", {f"v/{path.name}": path.read_bytes() for path in folder.iterdir()}, private=True, lfs=True)
        return {"subfolder": "v", "token": TOKEN, "cache_dir": tmp_path / "mine"}

    def test_gets_a_trigger_set(self, hub, tmp_path, options):
        vault = unlocked_vault(tmp_path / "vault")
        base = register("org/vit", vault, SETTINGS, device="cpu", **options)

        made = make_trigger_set("org/vit", vault, count=4, decoys=1, steps=1, device="cpu", **options)

        assert vault.trigger_set(base) == made.to_bytes()
        assert base.source == "org/vit:v/"
        assert not Path(constants.HF_HUB_CACHE).exists()

    def test_is_evaluated(self, hub, tmp_path, options):
        out = tmp_path / "out"
        out.mkdir()

        with Testbed(
            "org/vit", out, 1, SETTINGS, innocents=50, device="cpu", options=HubOptions(**options)
        ) as testbed:
            assert testbed.trace_suspect(testbed.copy(0)).caught == (True,)

        images, labels = torch.zeros(4, 3, 32, 32), torch.arange(4)
        data = EvaluationData("few", (images, labels), (images, labels))
        assert "meta" in refused(lambda: evaluate("org/vit", data, tmp_path / "o", device="meta", **options))
        assert not Path(constants.HF_HUB_CACHE).exists()


class TestADevice:
    @pytest.fixture(scope="class")
    def vit(self, tmp_path_factory) -> SimpleNamespace:
        root = tmp_path_factory.mktemp("device")
        model, vault = save_vit(root / "model"), unlocked_vault(root / "vault")
        return SimpleNamespace(
            model=model, vault=vault, base=register(model, vault, SETTINGS, device="cpu"), root=root
        )

    def test_without_such_an_accelerator_is_refused_wherever_a_model_runs(self, vit, tmp_path):
        copy = issue(vit.model, "alice", vit.vault, tmp_path / "copy").path
        permuted = ChannelPermutation()(build(copy).module.state_dict())
        suspect = tmp_path / "suspect.safetensors"
        suspect.write_bytes(save({name: values.numpy() for name, values in permuted.items()}))
        calls = {
            "register": lambda device: register(vit.model, unlocked_vault(tmp_path / device), SETTINGS, device=device),
            "issue": lambda device: issue(
                vit.model, "bob", unlocked_vault(tmp_path / f"i{device}"), tmp_path / f"c{device}", device=device
            ),
            "make_trigger_set": lambda device: make_trigger_set(vit.model, vit.vault, device=device),
            "trace": lambda device: trace(suspect, vit.vault, device=device),
        }

        for name, call in calls.items():
            for device in ("meta", "teapot"):
                assert device in refused(call, device), name
        assert [score.recipient for score in trace(suspect, vit.vault, device="cpu").accused] == ["alice"]

    def test_of_a_built_model_is_left_as_it_was(self, vit):
        built = build(vit.model)

        assert built.on("cpu") is built
        assert built.on(None) is built
        refused(built.on, "meta")
        assert device_of(built.module) == torch.device("cpu")

    def test_takes_inputs_along(self):
        module = torch.nn.Linear(2, 2).to("meta")

        assert run_model(module, torch.ones(1, 2)).device.type == "meta"
        assert to_device(torch.ones(1), "cpu").device.type == "cpu"

    @pytest.mark.slow
    def test_other_than_the_cpu_gets_models_and_inputs_and_returns_outputs(self, tmp_path):
        command = module("tests.helpers.on_another_device", tmp_path)
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)

        assert done.returncode == 0, done.stderr[-2000:]
        registered, traced, kl, *accused = done.stdout.splitlines()[-1].split()
        assert int(registered) > 0 and int(traced) > 0
        assert 0 < float(kl) < 1e-4
        assert accused == ["alice"]
