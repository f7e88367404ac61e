import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyrage
import pytest
from safetensors.numpy import load_file, save_file

from hf_fingerprint import Issuer, Vault
from hf_fingerprint.cli.main import main
from hf_fingerprint.registration import predictions
from hf_fingerprint.vault.sealing import encrypt_identity
from tests.helpers.small_models import (
    PASSPHRASE,
    PLAIN_SETTINGS,
    bytes_of,
    names_in,
    new_vault,
    plain_arrays,
    save_plain,
    save_timm,
)


MEASURED = ["--coalition", "3", "--expected-recipients", "4"]
FEW = [*MEASURED, "--amplitude", "0.003"]  # of what no library builds


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A vault with one base and two copies, on the disk, and its passphrase in a file. Not to be added to."""
    root = tmp_path_factory.mktemp("shared")
    vault, model = new_vault(root / "vault"), save_plain(root / "model", README_md="# hi")
    (root / "passphrase").write_text(PASSPHRASE + "\nnot this line\n")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        list(issuer.issue_all(["alice", "[bold]x"], root / "copies"))
    return SimpleNamespace(
        root=root,
        vault=vault.folder,
        model=model,
        copies=root / "copies",
        passphrase=root / "passphrase",
        base=issuer.base,
    )


def failed(outcome: tuple[int, str, str]) -> str:
    """What an error says, once it is an error as all of them are: exit code 2, nothing on stdout, one line."""
    code, out, err = outcome
    err = err.lstrip("\n")  # see test_an_error_behind_a_progress_bar_is_one_line_and_nothing_else
    assert code == 2
    assert out == ""
    assert err.startswith("Error: "), err
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert len(err) > len("Error: x.\n")
    assert "Traceback" not in err
    return err


def in_a_process(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    """Runs the console script with nobody at the terminal."""
    script = Path(sys.executable).with_name("hf-fingerprint")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_FINGERPRINT")}
    environment["PYTHONWARNINGS"] = "ignore::UserWarning"  # the seal of tests is a weak one
    return subprocess.run(
        [script, *map(str, arguments)],
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_the_whole_way_from_a_vault_to_a_verdict(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_plain(Path("model"))
    Path("passphrase").write_text("open sesame\n")

    code, out, err = run("vault", "init", "vault", "--passphrase-file", "passphrase")
    assert (code, err) == (0, "")
    assert "vault/identity.age" in out
    assert Vault("vault").public_key in out

    code, out, _ = run("vault", "add", "model", "--vault", "vault", *FEW)
    assert code == 0
    assert "carriers: 17 of 31 tensors, 131,328 weights" in out
    assert "certified coalition: " in out

    code, out, _ = run("issue", "model", "--recipient", "bob", "--vault", "vault", "--out", "copies")
    assert code == 0
    assert f"bob: {tmp_path / 'copies' / 'bob'}\n" in out
    assert "designed for" in out
    assert "certified against" in out

    code, out, _ = run("trace", "copies/bob", "--vault", "vault", "--passphrase-file", "passphrase")
    assert code == 0
    assert "ACCUSED" in out
    assert "accused: the copy made for bob (" in " ".join(out.split())

    code, out, _ = run("trace", "model", "--vault", "vault", "--passphrase-file", "passphrase")
    assert code == 1
    assert "ACCUSED" not in out
    assert "nobody is accused" in out


def test_trace_prints_what_programs_need(shared, run):
    code, out, _ = run(
        "trace", shared.copies / "alice", "--vault", shared.vault, "--passphrase-file", shared.passphrase, "--json"
    )

    printed = json.loads(out)
    assert code == 0
    (accused,) = printed["accused"]
    assert accused["recipient"] == "alice"
    assert accused["score"] > 30
    assert accused["log10_false_accusation"] < -60
    assert printed["recipients_tested"] == 2
    assert printed["tensors_matched"] == 17
    assert printed["lineage"]["descends"] is True
    assert printed["scores"] == printed["accused"]
    assert accused["state"] == "written"
    assert printed["outcome"] == "accused"
    assert (printed["base"], printed["base_source"], printed["revision"]) == (
        shared.base.base_id,
        str(shared.model),
        None,
    )


def test_scores_of_those_who_are_not_accused_are_shown_on_demand_with_a_warning(shared, run):
    arguments = ["trace", shared.model, "--vault", shared.vault, "--passphrase-file", shared.passphrase]
    _, out, err = run(*arguments)
    assert "[bold]x" not in out
    assert err == ""

    for form in ([], ["--json"]):
        code, out, err = run(*arguments, "--all-scores", *form)
        assert code == 1
        assert "[bold]x" in out
        assert "do not publish them" in err


def test_trace_of_what_cannot_be_read_exits_with_three(shared, run, tmp_path):
    integers = {n: np.array(100 * t).astype(np.int8) for n, t in load_file(shared.model / "model.safetensors").items()}
    save_file(integers, tmp_path / "integers.safetensors")
    arguments = ["--vault", shared.vault, "--passphrase-file", shared.passphrase]

    code, out, _ = run("trace", tmp_path / "integers.safetensors", *arguments)
    assert code == 3
    assert "not readable: nobody is accused, and nobody is cleared" in " ".join(out.split())
    assert "(I8)" in out
    code, out, _ = run("verify", tmp_path / "integers.safetensors", "--recipient", "alice", *arguments, "--json")
    assert (code, json.loads(out)["outcome"]) == (3, "not readable")


def test_trace_of_an_innocent_exits_with_one(shared, run):
    code, out, _ = run(
        "trace", shared.model, "--vault", shared.vault, "--passphrase-file", shared.passphrase, "--json"
    )

    assert code == 1
    assert json.loads(out)["accused"] == []
    assert json.loads(out)["threshold"] is None


@pytest.fixture(scope="module")
def hard(shared, tmp_path_factory):
    """The option that names the shared vault's identity sealed as hard as it should be, so that nothing is said."""
    identity = pyrage.passphrase.decrypt((shared.vault / "identity.age").read_bytes(), PASSPHRASE).decode().strip()
    file = tmp_path_factory.mktemp("hard") / "identity.age"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_fingerprint.vault.passphrase_age.LOG_WORK", 18)
        file.write_bytes(encrypt_identity(identity, PASSPHRASE))
    return "--identity", file


def test_json_is_all_there_is_on_stdout(shared, hard):
    common = ["--vault", shared.vault, "--json", *hard]
    done = in_a_process("trace", shared.copies / "alice", *common, HF_FINGERPRINT_PASSPHRASE=PASSPHRASE)

    assert done.returncode == 0
    assert json.loads(done.stdout)["accused"][0]["recipient"] == "alice"
    assert done.stderr.strip() == ""


def test_trace_finds_a_moved_base_by_place_and_by_id(shared, run):
    common = ["--vault", shared.vault, "--passphrase-file", shared.passphrase, "--json"]

    assert run("trace", shared.copies / "alice", "--base", shared.model, *common)[0] == 0
    assert run("trace", shared.copies / "alice", "--base", shared.base.base_id, *common)[0] == 0
    assert "is not a base of" in failed(
        run("trace", shared.copies / "alice", "--base", shared.copies / "alice", *common)
    )


def test_an_identity_elsewhere_opens_the_vault(shared, run, tmp_path):
    import shutil

    shutil.copytree(shared.vault, tmp_path / "vault")
    (tmp_path / "vault" / "identity.age").rename(tmp_path / "safe.age")
    common = ["trace", shared.copies / "alice", "--vault", tmp_path / "vault", "--passphrase-file", shared.passphrase]

    assert "identity.age can't be read" in failed(run(*common))
    assert run(*common, "--identity", tmp_path / "safe.age")[0] == 0


def test_issue_prints_what_programs_need(shared, run, tmp_path):
    vault = new_vault(tmp_path / "vault")
    (tmp_path / "model").mkdir()
    save_file(plain_arrays(), tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"unmarked")
    arguments = ["issue", tmp_path / "model", "--recipient", "a", "--recipient", "b", "--vault", vault.folder]

    code, out, _ = run(*arguments, "--out", tmp_path / "out", *FEW, "--json")

    printed = json.loads(out)
    assert code == 0
    assert [copy["recipient"] for copy in printed] == ["a", "b"]
    assert [copy["path"] for copy in printed] == [str(tmp_path / "out" / name) for name in "ab"]
    unmarked = {"name": "pytorch_model.bin", "reason": "weights in another format, unmarked"}
    assert [copy["left_out"] for copy in printed] == [[unmarked]] * 2
    assert [copy["new"] for copy in printed] == [True, True]
    assert {copy["commitment"] for copy in printed} == {copy.commitment for copy in vault.copies()}
    assert names_in(tmp_path / "out") == ["a", "b"]
    code, out, _ = run(*arguments, "--out", tmp_path / "out", "--json")
    assert (code, [copy["new"] for copy in json.loads(out)]) == (0, [False, False])


def test_issue_says_what_it_left_out_and_what_it_found(shared, run, tmp_path):
    vault = new_vault(tmp_path / "vault")
    model = save_plain(tmp_path / "model")
    (model / "tf_model.h5").write_bytes(b"unmarked")
    (model / "\x1b[2J\nAll is well.env").write_bytes(b"")
    (model / "own.py").write_bytes(b"")
    arguments = ["issue", model, "--recipient", "a", "--vault", vault.folder, "--out", tmp_path / "copies", *FEW]

    _, out, err = run(*arguments)
    assert "left out: tf_model.h5 (weights in another format, unmarked)" in err
    assert "left out: \\x1b[2J\\nAll is well.env (a secret)" in err
    assert "left out: own.py (code; --include-code copies it)" in err
    assert "\x1b" not in err
    assert "tf_model.h5" not in out
    assert "(issued before, complete)" in run(*arguments)[1]


def test_a_recipient_named_twice_gets_one_copy(shared, run, tmp_path):
    vault = new_vault(tmp_path / "vault")
    twice = ["--recipient", "a", "--recipient", "a"]

    assert run("issue", shared.model, *twice, "--vault", vault.folder, "--out", tmp_path / "copies", *FEW)[0] == 0
    assert [copy.recipient for copy in vault.copies()] == ["a"]
    assert names_in(tmp_path / "copies") == ["a"]


def test_recipients_lists_who_got_what_and_when(shared, run):
    code, out, err = run("recipients", "--vault", shared.vault)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 5
    assert out.splitlines()[2] == f"[bold]x  {shared.copies / '[bold]x'}"
    assert re.fullmatch(rf"  written \S+  copy \w+ of base {shared.base.base_id}", out.splitlines()[3])
    assert len(out.splitlines()[3]) <= 80
    assert out.splitlines()[4] == "2 copies, 2 recipients"

    printed = json.loads(run("recipients", "--vault", shared.vault, "--json")[1])
    assert [copy["recipient"] for copy in printed] == ["alice", "[bold]x"]
    assert {copy["state"] for copy in printed} == {"written"}
    keys = {"recipient", "copy", "base", "state", "out", "created", "content_hash", "commitment", "arrived"}
    assert printed[0].keys() == keys


def test_an_empty_vault_lists_nobody(tmp_path, run):
    vault = new_vault(tmp_path / "vault")

    assert run("recipients", "--vault", vault.folder)[1] == "0 copies, 0 recipients\n"
    assert json.loads(run("recipients", "--vault", vault.folder, "--json")[1]) == []


def test_inspect_shows_a_model_and_records_nothing(shared, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    code, out, _ = run("inspect", shared.model, *FEW)
    listed = run("inspect", shared.model, *FEW, "--tensors")[1]
    assert code == 0
    assert "144x48  blocks.0.attn.qkv.weight" in listed
    assert listed.count("0.300%") == 17
    assert "blocks.0" not in out and len(listed.splitlines()) == len(out.splitlines()) + 17
    assert "predicted score of one leaked copy" in out

    assert "tensors" not in json.loads(run("inspect", shared.model, *FEW, "--json")[1])
    printed = json.loads(run("inspect", shared.model, *FEW, "--json", "--tensors")[1])
    assert (printed["carriers"], printed["length"], printed["code"], printed["coalition_designed"]) == (
        17,
        2048,
        "tardos",
        3,
    )
    assert printed["predicted_score"] > 7
    assert printed["tensors"][0].keys() == {"name", "shape", "dtype", "amplitude"}
    assert len(printed["tensors"]) == 17
    assert names_in(tmp_path) == []


def test_inspect_measures_a_model_that_runs(run, tmp_path):
    from PIL import Image

    model = save_timm(tmp_path / "model", "test_vit")
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (i * 80, 90, 200 - i * 50)).save(tmp_path / "images" / f"{i}.png")

    printed = json.loads(run("inspect", model, *MEASURED, "--max-kl", "1e-6", "--json")[1])
    assert 0 < printed["kl"] <= 1e-6
    assert printed["calibration_inputs"] == "synthetic"
    printed = json.loads(run("inspect", model, *MEASURED, "--calibration", tmp_path / "images", "--json")[1])
    assert printed["calibration_inputs"] == "images"
    assert "holds no images" in failed(run("inspect", model, "--calibration", tmp_path / "vault"))


UNKNOWN = "the effect of the mark on the output"


def test_what_cannot_be_measured_is_refused_and_at_a_fixed_strength_warned_of_once(shared, run, tmp_path):
    vault = new_vault(tmp_path / "vault")
    to = ["--vault", vault.folder]
    issuing = ["issue", shared.model, "--recipient", "x", *to, "--out", tmp_path / "copies"]

    for command in (["inspect", shared.model], ["vault", "add", shared.model, *to], issuing):
        assert "mark it at a fixed amplitude with --amplitude 0.003" in failed(run(*command, *MEASURED))
    assert vault.bases() == []

    code, _, err = run(*issuing, *FEW)
    assert code == 0
    assert UNKNOWN in err
    assert UNKNOWN not in run(*issuing, *FEW)[2]
    assert UNKNOWN in run("inspect", shared.model, *FEW)[2]
    assert UNKNOWN in run("vault", "add", shared.model, *to, *FEW)[2]


def test_vault_add_remeasures_a_known_base(shared, run, tmp_path):
    vault = new_vault(tmp_path / "vault")
    add = ["vault", "add", shared.model, "--vault", vault.folder, *MEASURED]
    assert run(*add, "--amplitude", "0.003")[0] == 0
    assert "--remeasure" in failed(run(*add, "--amplitude", "0.006"))

    code, out, _ = run(*add, "--amplitude", "0.006", "--remeasure", "--json")

    old, new = vault.bases()
    assert code == 0
    assert json.loads(out) == {**new.describe(), **predictions(new)}
    assert new.replaces == old.base_id


def test_a_copy_is_a_base_only_if_that_is_meant(run, tmp_path):
    vault, model = new_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    to = ["--vault", vault.folder]
    run("issue", model, "--recipient", "alice", *to, "--out", tmp_path, *FEW)
    (base,) = vault.bases()
    weights = load_file(tmp_path / "alice" / "model.safetensors")
    half = {n: v.astype("float16") if v.dtype == "float32" else v for n, v in weights.items()}
    changed = save_plain(tmp_path / "changed", half | {"head.weight": half["head.weight"][:3]})

    issuing = ["issue", changed, "--recipient", "bob", *to, "--out", tmp_path]
    refusal = failed(run(*issuing, *FEW))
    assert f"{changed} carries the mark of base {base.base_id} ({model})" in refusal
    assert "--as-base" in refusal
    assert "is alice's copy" in failed(run("vault", "add", tmp_path / "alice", *to, *FEW))
    assert "is alice's copy" in failed(run("triggers", tmp_path / "alice", *to))
    assert not (tmp_path / "bob").exists()

    assert run(*issuing, *FEW, "--as-base")[0] == 0
    code, out, _ = run("vault", "add", tmp_path / "alice", *to, *FEW, "--as-base", "--json")
    assert code == 0
    assert json.loads(out)["copy_of"] == base.base_id
    assert [each.copy_of for each in vault.bases()] == [None, base.base_id, base.base_id]
    assert (tmp_path / "bob" / "model.safetensors").is_file()
    assert run(*issuing, *FEW)[0] == 0  # known by now


def test_the_kind_of_output_and_the_number_of_images_are_options(run, tmp_path):
    model = save_timm(tmp_path / "model", "test_vit", num_classes=3)
    options = [*MEASURED, "--output-kind", "single_label", "--calibration-images", "20", "--json"]

    printed = json.loads(run("inspect", model, *options)[1])

    assert (printed["output"], printed["calibration_images"], printed["decisions"]) == ("single_label", 20, 20)
    assert printed["agreement_low"] <= printed["agreement"] <= printed["agreement_high"]
    wrong = "`--output-kind` must be one of single_label, multi_label, dense, features, got logits. Try"
    assert wrong in failed(run("inspect", model, "--output-kind", "logits"))
    assert "`calibration_images` must be at least 1" in failed(run("inspect", model, "--calibration-images", "0"))


def test_vault_add_prints_a_base_as_json_and_again_the_same(shared, run, tmp_path):
    vault = new_vault(tmp_path / "vault")

    code, out, _ = run("vault", "add", shared.model, "--vault", vault.folder, *FEW, "--json")

    assert code == 0
    assert json.loads(out) == {**vault.bases()[0].describe(), **predictions(vault.bases()[0])}
    assert run("vault", "add", shared.model, "--vault", vault.folder, "--json")[1] == out
    assert "registered with" in failed(run("vault", "add", shared.model, "--vault", vault.folder, "--coalition", "5"))


def test_an_ancestor_is_recorded_first_or_later_and_a_trace_uses_it(shared, run, tmp_path):
    arrays = {n: 2 * a if a.ndim else a for n, a in plain_arrays().items()}
    public, to = save_plain(tmp_path / "public", arrays), ["--vault", new_vault(tmp_path / "vault").folder]
    assert run("vault", "add", shared.model, *to, *FEW)[0] == 0

    code, out, _ = run("vault", "add", shared.model, *to, "--ancestor", public)
    assert code == 0
    assert f"ancestor: {public} " in " ".join(out.split()) + " "
    assert "can't be the ancestor" in failed(run("vault", "add", shared.model, *to, "--ancestor", shared.model))
    printed = json.loads(run("vault", "add", shared.model, *to, "--json")[1])
    assert printed["ancestor"]["source"] == str(public)

    assert run("issue", shared.model, *to, "--recipient", "bob", "--out", tmp_path)[0] == 0
    trace = ["trace", tmp_path / "bob", *to, "--passphrase-file", shared.passphrase, "--json"]
    for options, problem in (([], None), (["--ancestor", "none"], "The caller left it out.")):
        code, out, _ = run(*trace, *options)
        (read,) = json.loads(out)["bases_read"]
        assert code == 0
        assert (read["ancestor"], read["ancestor_problem"]) == (str(public), problem)
    assert "another hash" in failed(run(*trace, "--ancestor", shared.model))

    assert "ancestor" not in run("vault", "add", shared.model, *to, "--ancestor", "none")[1]


def test_an_issue_that_registers_shows_the_ancestor(shared, run, tmp_path):
    arrays = {n: 2 * a if a.ndim else a for n, a in plain_arrays().items()}
    public, vault = save_plain(tmp_path / "public", arrays), new_vault(tmp_path / "vault").folder

    issuing = ["issue", shared.model, "--vault", vault, "--recipient", "bob", "--out", tmp_path, *FEW]
    code, _, err = run(*issuing, "--ancestor", public)

    assert code == 0
    assert f"ancestor: {public}\n" in err


def test_a_passphrase_may_come_from_a_file_or_the_environment(shared, run, monkeypatch):
    trace = ["trace", shared.copies / "alice", "--vault", shared.vault]

    assert "A passphrase is needed" in failed(run(*trace))
    monkeypatch.setenv("HF_FINGERPRINT_PASSPHRASE", PASSPHRASE)
    assert run(*trace)[0] == 0
    monkeypatch.setenv("HF_FINGERPRINT_PASSPHRASE", "wrong")
    assert "does not open with this passphrase" in failed(run(*trace))
    assert run(*trace, "--passphrase-file", shared.passphrase)[0] == 0


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe\n"])
def test_a_passphrase_file_without_a_passphrase_is_an_error(shared, run, tmp_path, content):
    if content is not None:
        (tmp_path / "passphrase").write_bytes(content)

    said = failed(run("trace", shared.model, "--vault", shared.vault, "--passphrase-file", tmp_path / "passphrase"))

    assert "passphrase" in said


def test_an_empty_passphrase_makes_no_vault(run, tmp_path):
    (tmp_path / "passphrase").write_text("\n")

    assert "empty" in failed(run("vault", "init", tmp_path / "vault", "--passphrase-file", tmp_path / "passphrase"))
    assert names_in(tmp_path) == ["passphrase"]


def test_the_passphrase_is_never_an_argument(shared, run):
    for command in (["trace", shared.model], ["issue", shared.model], ["vault", "init"]):
        assert "No such option" in failed(run(*command, "--passphrase", "secret"))


USAGE = [
    ["--nope"],
    ["nonsense"],
    ["vault", "nonsense"],
    ["issue"],
    ["issue", "model"],
    ["issue", "model", "--recipient", "x", "--out", "y"],
    ["issue", "model", "--recipient", "x", "--vault", "v", "--out", "y", "--max-kl", "much"],
    ["issue", "model", "--recipient", "x", "--vault", "v", "--out", "y", "--coalition", "2.5"],
    ["trace", "x"],
    ["trace", "x", "y", "--vault", "z"],
    ["recipients"],
    ["recipients", "--vault"],
    ["inspect"],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_usage_errors_are_one_line_that_says_where_help_is(run, arguments):
    assert re.search(r"\. Try `hf-fingerprint [a-z ]*--help`", failed(run(*arguments)))


@pytest.mark.parametrize("arguments", [[], ["vault"]], ids=["nothing", "vault"])
def test_no_command_shows_the_help_and_no_empty_error(run, arguments):
    _, out, err = run(*arguments)

    assert "Usage:" in out + err
    assert "Error: Try" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["issue", "MODEL", "--recipient", "x", "--vault", "nowhere", "--out", "o"], "nowhere holds no vault"),
        (["issue", "nowhere", "--recipient", "x", "--vault", "VAULT", "--out", "o"], "nowhere is neither a folder"),
        (["issue", "MODEL", "--recipient", "", "--vault", "VAULT", "--out", "o"], "1 to 255 printable characters"),
        (["issue", "MODEL", "--recipient", "new\nline", "--vault", "VAULT", "--out", "o"], "printable characters"),
        (
            ["issue", "MODEL", "--recipient", "a/b", "--recipient", "c", "--vault", "VAULT", "--out", "o"],
            "name a folder",
        ),
        (["issue", "MODEL", "--recipient", "copies", "--vault", "VAULT", "--out", "ROOT"], "exists and is not this"),
        (
            ["issue", "MODEL", "--recipient", "x", "--vault", "VAULT", "--out", "MODEL"],
            "inside the model's own folder",
        ),
        (
            ["issue", "MODEL", "--recipient", "x", "--vault", "VAULT", "--out", "o", "--max-kl", "0"],
            "`max_kl` must be above 0",
        ),
        (["issue", "MODEL", "--recipient", "x", "--vault", "VAULT", "--out", "o", "--alpha", "2"], "at most 0.05"),
        (
            ["issue", "MODEL", "--recipient", "x", "--vault", "VAULT", "--out", "o", "--coalition", "9"],
            "is registered with",
        ),
        (
            ["issue", "MODEL", "--recipient", "x", "--vault", "VAULT", "--out", "MODEL/model.safetensors/o"],
            "model.safetensors",
        ),
        (["trace", "nowhere", "--vault", "VAULT", "--passphrase-file", "PASSPHRASE"], "nowhere is neither a folder"),
        (["trace", "MODEL", "--vault", "nowhere", "--passphrase-file", "PASSPHRASE"], "nowhere holds no vault"),
        (["trace", "MODEL", "--vault", "VAULT", "--passphrase-file", "nowhere"], "passphrase file nowhere"),
        (["trace", "MODEL", "--vault", "VAULT", "--passphrase-file", "PASSPHRASE", "--base", "no"], "no is neither"),
        (["recipients", "--vault", "MODEL"], "holds no vault"),
        (["vault", "init", "VAULT", "--passphrase-file", "PASSPHRASE"], "already holds a vault"),
        (["vault", "add", "nowhere", "--vault", "VAULT"], "nowhere is neither a folder"),
        (["inspect", "nowhere"], "nowhere is neither a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_one_sentence_on_stderr(shared, run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    places = {
        "MODEL": shared.model,
        "VAULT": shared.vault,
        "PASSPHRASE": shared.passphrase,
        "ROOT": shared.model.parent,
    }
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]

    assert said in failed(run(*arguments))
    assert [copy.recipient for copy in Vault(shared.vault).copies()] == ["alice", "[bold]x"]


def test_a_damaged_vault_is_one_sentence(shared, run, tmp_path):
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault" / "vault.db").write_bytes(b"SQLite format 3\0" + bytes(3000))

    assert "can't be used as a vault" in failed(run("recipients", "--vault", tmp_path / "vault"))


SURPRISES = [
    ("hf_fingerprint.vault.Vault.copies", ["recipients", "--vault", "VAULT"]),
    ("hf_fingerprint.registration.analyze_base", ["inspect", "MODEL"]),
    (
        "hf_fingerprint.issuing.issuer.write_copy",
        ["issue", "MODEL", "--recipient", "x", "--vault", "VAULT", "--out", "o"],
    ),
    (
        "hf_fingerprint.tracing.local_files.extract",
        ["trace", "MODEL", "--vault", "VAULT", "--passphrase-file", "PASSPHRASE"],
    ),
]


@pytest.mark.parametrize(
    ("place", "arguments"), SURPRISES, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_an_unexpected_exception_is_one_line_that_keeps_its_text_to_itself(
    shared, run, tmp_path, monkeypatch, place, arguments
):
    def surprise(*arguments, **options):
        raise ZeroDivisionError("the secret is 12345")

    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(place, surprise)
    places = {
        "MODEL": shared.model,
        "VAULT": shared.vault,
        "PASSPHRASE": shared.passphrase,
        "ROOT": shared.model.parent,
    }
    arguments = [str(places.get(argument, argument)) for argument in arguments]

    said = failed(run(*arguments))
    assert "An unexpected ZeroDivisionError" in said
    assert "HF_FINGERPRINT_TRACEBACK=1" in said
    assert "12345" not in said
    monkeypatch.setenv("HF_FINGERPRINT_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError, match="12345"):
        main(arguments)
    monkeypatch.undo()
    vault = Vault(shared.vault)
    assert {copy.recipient for copy in vault.copies()} <= {"alice", "[bold]x", "x"}
    with vault.connect() as connection:  # leave the shared vault as it was
        connection.execute("DELETE FROM copies WHERE recipient = 'x'")


def test_a_wish_for_the_traceback_is_granted_in_a_process(shared):
    arguments = ["trace", "nowhere", "--vault", shared.vault, "--passphrase-file", shared.passphrase]

    plain, verbose = in_a_process(*arguments), in_a_process(*arguments, HF_FINGERPRINT_TRACEBACK="1")

    assert (plain.returncode, plain.stdout) == (2, "")
    assert "Traceback" not in plain.stderr
    assert "Traceback (most recent call last)" in verbose.stderr
    assert "CheckpointError: nowhere is neither" in verbose.stderr
    assert verbose.returncode != 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt, EOFError])
def test_an_interruption_is_one_line_that_says_how_to_go_on(shared, run, monkeypatch, stop):
    def interrupt(*arguments, **options):
        raise stop

    monkeypatch.setattr("hf_fingerprint.vault.Vault.copies", interrupt)

    code, out, err = run("recipients", "--vault", shared.vault)

    assert code in {2, 130}  # 0 and 1 would be verdicts
    assert out == ""
    assert err.strip() == "Error: Interrupted: run the command again to resume."


def test_an_error_behind_a_progress_bar_is_one_line_and_nothing_else(shared, hard):
    done = in_a_process("trace", "nowhere", "--vault", shared.vault, "--passphrase-file", shared.passphrase, *hard)

    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: nowhere")


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom hf_fingerprint.cli.main import main\nmain(['issue', '--help'])\n"
        "print('LOADED', *sorted({n.split('.')[0] for n in sys.modules}))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    help_text, _, loaded = done.stdout.rpartition("LOADED")
    assert "--recipient" in help_text
    assert not set(loaded.split()) & {
        "torch",
        "timm",
        "transformers",
        "numpy",
        "scipy",
        "safetensors",
        "huggingface_hub",
    }


def test_help_names_every_command_and_the_exit_codes(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("inspect", "issue", "trace", "recipients", "vault"))
    assert "HF_FINGERPRINT_TRACEBACK" in out
    code, out, _ = run("trace", "--help")
    assert code == 0
    assert (
        "Exit code 0: somebody is accused, 1: nobody, or the model is not comparable, 2: an "
        "error, 3: not readable" in " ".join(out.replace("│", " ").split())
    )


def test_the_script_and_its_exit_codes(shared):
    common = ["--vault", shared.vault, "--passphrase-file", shared.passphrase]

    assert in_a_process("trace", shared.copies / "[bold]x", *common).returncode == 0
    assert in_a_process("trace", shared.model, *common).returncode == 1
    assert in_a_process("trace", "nowhere", *common).returncode == 2


def test_options_repeated_with_some_of_the_recorded_values_are_accepted(shared, run, tmp_path):
    vault = new_vault(tmp_path / "vault")
    assert run("vault", "add", shared.model, "--vault", vault.folder, *FEW)[0] == 0

    outcome = run("issue", shared.model, "--recipient", "x", "--vault", vault.folder, "--out", tmp_path, *FEW[:2])

    assert outcome[0] == 0, outcome[2]


def test_a_traced_copy_is_not_changed_by_the_command_line(shared, run, tmp_path):
    arrays = load_file(shared.copies / "alice" / "model.safetensors")
    save_file(arrays, tmp_path / "suspect.safetensors")
    before = bytes_of(tmp_path)

    run("trace", tmp_path / "suspect.safetensors", "--vault", shared.vault, "--passphrase-file", shared.passphrase)

    assert bytes_of(tmp_path) == before


def test_one_of_several_weight_files_is_chosen_by_its_name(tmp_path, capsys):
    model = save_plain(tmp_path / "model", plain_arrays(1))
    save_file(plain_arrays(2), model / "other.safetensors")
    (model / "model.safetensors").rename(model / "one.safetensors")
    hashes = []
    for name in ("one.safetensors", "other.safetensors"):
        assert main(["hash", str(model), "--file", name]) == 0
        hashes.append(capsys.readouterr().out)

    assert len(set(hashes)) == 2
    assert main(["hash", str(model)]) == 2
    assert "--file one.safetensors" in capsys.readouterr().err.replace("\n", " ")
