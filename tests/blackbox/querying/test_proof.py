import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_fingerprint.blackbox import check_proof, keyed_labels, query, write_proof
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.keys import commitment
from hf_fingerprint.outcomes import Outcome
from tests.helpers.error_checks import refused
from tests.helpers.trigger_models import ModelSuspect


pytestmark = pytest.mark.integration


NAME = "recipient 1"


@pytest.fixture(scope="module")
def written(issued, tmp_path_factory):
    """A proof, and the result that it proves."""
    root = tmp_path_factory.mktemp("written")
    _, vault, _, copies = issued
    result = query(ModelSuspect(copies[NAME]), vault, alpha=1e-3, transcript=root / "transcript")
    write_proof(root / "proof.json", root / "transcript", result, vault)
    return root / "proof.json", result


@pytest.fixture
def proof(written, tmp_path):
    return shutil.copy(written[0], tmp_path / "proof.json")


def altered(proof, change):
    """The proof after a change to its document."""
    document = json.loads(proof.read_text())
    change(document)
    proof.write_text(json.dumps(document))
    return proof


def test_a_proof_holds_without_the_vault(written, issued):
    proof, result = written
    _, vault, base, _ = issued
    (record,) = vault.copies(base.base_id, NAME)

    (proven,) = check_proof(proof).accusations

    (score,) = result.accused
    assert proven.holds and proven.opened
    assert (proven.recipient, proven.suspect, proven.commitment) == (NAME, "suspect", record.commitment)
    assert (proven.agreeing, proven.counted, proven.copies) == (score.agreeing, score.counted, 8)
    assert proven.log10_bound == pytest.approx(score.log10_bound)
    assert proven.alpha == 1e-3
    assert proof.stat().st_mode & 0o077 == 0


def test_it_gives_away_the_key_of_the_accused_alone(written, issued):
    _, vault, base, _ = issued
    content = written[0].read_text()

    for record in vault.copies(base.base_id):
        assert (vault.copy_key(record).hex() in content) == (record.recipient == NAME)
    assert base.secret.hex() not in content


@pytest.mark.parametrize(
    "change",
    [
        {"recipient": "somebody else"},
        {"commitment": "00" * 32},
        {"content_hash": "00" * 32},
        {"copy_key": "11" * 32},
    ],
)
def test_with_another_name_or_key_it_does_not_hold(proof, change):
    (proven,) = check_proof(altered(proof, lambda document: document["accused"][0].update(change))).accusations

    assert not proven.opened and not proven.holds


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update({"answers": [[q, (label + 1) % 10] for q, label in document["answers"]]}),
        lambda document: document.update({"answers": document["answers"][:3]}),
        lambda document: document["heading"].update(recipients=10**9),
        lambda document: document["heading"].update(classes=11),
        lambda document: document["heading"].update(alpha=1e-12),
        lambda document: document["heading"].update(alpha=5e-324),
        lambda document: document["heading"].update(recipients=10**400),
        lambda document: document.update({"answers": []}),
        lambda document: document.update({"answers": [[q, None] for q, _ in document["answers"]]}),
        *(lambda document, alpha=alpha: document["heading"].update(alpha=alpha) for alpha in (0.051, 0.5, 0.99)),
    ],
)
def test_with_other_responses_or_another_accused_it_does_not_hold(proof, change):
    (proven,) = check_proof(altered(proof, change)).accusations

    assert proven.opened and not proven.holds


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(format=2),
        lambda document: document.update({"answers": document["answers"] * 2}),
        lambda document: document["heading"].update({"questions": 10**12}),
        lambda document: document["heading"].update(classes=1),
        lambda document: document["heading"].update(classes=True),
        lambda document: document["heading"].update(share=7),
        *(
            lambda document, alpha=alpha: document["heading"].update(alpha=alpha)
            for alpha in (3, 1, 0, -0.1, True, "0.01", None, [0.01], float("nan"), float("inf"), 10**400)
        ),
        *(
            lambda document, share=share: document["heading"].update(share=share)
            for share in (0, -1, "1", None, float("nan"), float("inf"), -float("inf"), 10**400)
        ),
        *(
            lambda document, classes=classes: document["heading"].update(classes=classes)
            for classes in (0, 2, 65_537, 10**400, 10.0, float("nan"))
        ),
        *(
            lambda document, name=name: document["heading"].update({name: -1})
            for name in ("questions", "decoys", "recipients", "classes")
        ),
        lambda document: document["answers"].append([document["answers"][0][0], None]),
        lambda document: document["answers"].append([10**9, 1]),
        lambda document: document["answers"].append([-1, 1]),
        lambda document: document["answers"].append([0.5, 1]),
        lambda document: document["answers"].append([True, 1]),
        lambda document: document.update({"answers": [[q, 10**30] for q, _ in document["answers"]]}),
        lambda document: document.update({"answers": [[q, -1] for q, _ in document["answers"]]}),
        lambda document: document.update({"answers": [[q, 1.0] for q, _ in document["answers"]]}),
        lambda document: document.update({"answers": {"1": 2}}),
        lambda document: document.update(accused=[]),
        lambda document: document.update(accused=document["accused"] * 2),
        lambda document: document["heading"].update(recipients=float("inf")),
        lambda document: document["accused"][0].update(copy_key=document["accused"][0]["copy_key"][:-2]),
        lambda document: document["accused"][0].update(content_hash="00" * 33),
        lambda document: document["accused"][0].update(commitment=["00" * 32]),
        lambda document: document["heading"].update(recipients=0),
        lambda document: document["heading"].update(suspect="\x1b[2J"),
        lambda document: document["heading"].update(suspect=3),
        lambda document: document["accused"][0].update(recipient="\x1b[2J"),
        lambda document: document["accused"][0].update(copy_key="no digits"),
        lambda document: document["accused"][0].pop("copy_key"),
        lambda document: document.update(accused={"recipient": "x"}),
    ],
)
def test_what_is_no_proof_is_refused(proof, change):
    assert "proof.json" in refused(check_proof, altered(proof, change), error=FingerprintError)


def test_a_proof_names_no_more_accused_than_were_tested(proof, issued):
    _, vault, base, _ = issued
    (record,) = vault.copies(base.base_id, "recipient 2")
    other = {"recipient": "recipient 2", "content_hash": record.content_hash, "commitment": record.commitment}

    def change(document):
        document["accused"].append(other | {"copy_key": vault.copy_key(record).hex()})
        document["heading"]["recipients"] = 1

    assert "proof.json" in refused(check_proof, altered(proof, change), error=FingerprintError)


def test_without_a_published_commitment_it_is_not_checked_against_one(proof):
    (proven,) = check_proof(proof).accusations

    assert (proven.holds, proven.published, proven.outcome) == (True, None, Outcome.NOT_READABLE)
    predicted_labels = json.loads(json.dumps(proven.to_dict()))
    assert predicted_labels["outcome"] == "not readable"
    assert (
        len(predicted_labels["not_shown"]) == 4
        and "that these are the suspect's responses" in predicted_labels["not_shown"]
    )


def test_the_published_commitment_is_compared(proof):
    promised = json.loads(proof.read_text())["accused"][0]["commitment"]

    for published in ([promised], [f" {promised.upper()}\n"]):
        (proven,) = check_proof(proof, published).accusations
        assert (proven.holds, proven.published, proven.outcome) == (True, True, Outcome.ACCUSED)
    (proven,) = check_proof(proof, ["ab" * 32]).accusations
    assert (proven.opened, proven.published, proven.holds, proven.outcome) == (True, False, False, Outcome.NOBODY)
    for no_commitment in ("", "ab", "zz" * 32, "\x1b[2J", promised + "00"):
        assert "64 hexadecimal digits" in refused(check_proof, proof, [no_commitment])


def test_of_several_accused_each_has_its_own_commitment(proof, issued):
    _, vault, base, _ = issued
    (record,) = vault.copies(base.base_id, "recipient 2")
    key = vault.copy_key(record)
    document = json.loads(proof.read_text())
    opened = {"recipient": record.recipient, "content_hash": record.content_hash, "commitment": record.commitment}
    document["accused"].append(opened | {"copy_key": key.hex()})
    proof.write_text(json.dumps(document))
    first, second = (each["commitment"] for each in document["accused"])

    assert [proven.published for proven in check_proof(proof, [first]).accusations] == [True, None]
    assert [proven.published for proven in check_proof(proof, [second, first]).accusations] == [True, True]
    assert [proven.published for proven in check_proof(proof, [first, "ab" * 32]).accusations] == [True, False]
    holds = [proven.holds for proven in check_proof(proof).accusations]
    assert holds == [True, False]  # nothing speaks against the other
    assert check_proof(proof, [second, first]).outcome is Outcome.NOBODY


def made_from_nothing(path, alpha: float, share: float = 1.0):
    """A forged proof: a new key and responses that fit it."""
    key = bytes(range(32))
    labels = keyed_labels([key], 40, 10)[0].tolist()
    promised = commitment(key, "alice", "ab" * 32)
    heading = {"suspect": "https://bob.example", "base": "b", "digest": "ab" * 32, "questions": 40, "decoys": 0}
    heading |= {"classes": 10, "alpha": alpha, "share": share, "recipients": 1}
    opened = {"recipient": "alice", "content_hash": "ab" * 32, "commitment": promised, "copy_key": key.hex()}
    document = {"format": 1, "heading": heading, "answers": [*enumerate(labels)], "accused": [opened]}
    path.write_text(json.dumps(document))
    return path


def test_a_proof_made_from_nothing_never_counts_as_checked(tmp_path):
    path = made_from_nothing(tmp_path / "proof", 1e-6)

    assert check_proof(path).outcome is Outcome.NOT_READABLE
    assert check_proof(path, ["ab" * 32]).outcome is Outcome.NOBODY  # what alice's copy was published with
    assert check_proof(made_from_nothing(path, 0.99)).outcome is Outcome.NOBODY


@given(st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_put_into_a_proof_it_is_worked_out_or_refused_in_a_sentence(written, tmp_path, seed, data):
    document = json.loads(written[0].read_text())
    strange = [None, True, -1, 0, 1, 2**70, 10**400, 1.5, float("nan"), float("inf"), 5e-324, "", "\x1b", "ab", [], {}]
    where = data.draw(st.sampled_from(["top", "heading", "answers", "answer", "accused"]))
    held = {"top": document, "heading": document["heading"], "accused": document["accused"][0]}.get(where)
    value = data.draw(st.sampled_from(strange))
    if held is not None:
        held[data.draw(st.sampled_from(sorted(held)))] = value
    elif where == "answers":
        document["answers"].insert(seed % len(document["answers"]), value)
    else:
        document["answers"][seed % len(document["answers"])][seed % 2] = value
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(document))

    try:
        worked_out = check_proof(path).accusations
    except FingerprintError as error:
        assert "proof.json" in str(error) and len(str(error).splitlines()) == 1
        return
    for proven in worked_out:
        assert proven.log10_bound <= 0 and proven.counted <= 24
        assert not proven.holds or proven.alpha <= 0.05


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "proof.json").write_bytes(content)

    assert "proof.json" in refused(check_proof, tmp_path / "proof.json", error=FingerprintError)
    assert "nowhere" in refused(check_proof, tmp_path / "nowhere", error=FingerprintError)


def test_nobody_accused_leaves_nothing_to_prove(issued, tmp_path):
    folder, vault, _, _ = issued
    result = query(ModelSuspect(folder), vault, transcript=tmp_path / "transcript")

    said = refused(write_proof, tmp_path / "proof", tmp_path / "transcript", result, vault, error=FingerprintError)
    assert "Nobody is accused" in said


def test_a_proof_is_never_written_over(written, proof, issued):
    before = proof.read_bytes()

    said = refused(
        write_proof, proof, written[0].with_name("transcript"), written[1], issued[1], error=FingerprintError
    )

    assert "another file" in said
    assert proof.read_bytes() == before
    assert [path.name for path in proof.parent.iterdir()] == ["proof.json"]
