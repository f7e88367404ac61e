import json
import shutil

import pytest
from asked_models import Served
from refusals import refused

from hf_fingerprint.blackbox import check_proof, query, write_proof
from hf_fingerprint.errors import FingerprintError


NAME = "recipient 1"


@pytest.fixture(scope="module")
def written(asked, tmp_path_factory):
    """A proof, and the result that it proves."""
    root = tmp_path_factory.mktemp("written")
    _, vault, _, copies = asked
    result = query(Served(copies[NAME]), vault, alpha=1e-3, transcript=root / "transcript")
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


def test_a_proof_holds_without_the_vault(written, asked):
    proof, result = written
    _, vault, base, _ = asked
    (record,) = vault.copies(base.base_id, NAME)

    (proven,) = check_proof(proof)

    (score,) = result.accused
    assert proven.holds and proven.opened
    assert (proven.recipient, proven.suspect, proven.commitment) == (NAME, "suspect", record.commitment)
    assert (proven.agreeing, proven.counted, proven.copies) == (score.agreeing, score.counted, 8)
    assert proven.log10_bound == pytest.approx(score.log10_bound)
    assert proven.alpha == 1e-3
    assert proof.stat().st_mode & 0o077 == 0


def test_it_gives_away_the_key_of_the_accused_alone(written, asked):
    _, vault, base, _ = asked
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
    (proven,) = check_proof(altered(proof, lambda document: document["accused"][0].update(change)))

    assert not proven.opened and not proven.holds


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(answers=[[q, (told + 1) % 10] for q, told in document["answers"]]),
        lambda document: document.update(answers=document["answers"][:3]),
        lambda document: document["heading"].update(recipients=10**9),
        lambda document: document["heading"].update(classes=2),
        lambda document: document["heading"].update(alpha=1e-12),
    ],
)
def test_with_other_answers_or_another_aim_it_does_not_hold(proof, change):
    (proven,) = check_proof(altered(proof, change))

    assert proven.opened and not proven.holds


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(format=2),
        lambda document: document.update(answers=document["answers"] * 2),
        lambda document: document["heading"].update(questions=10**12),
        lambda document: document["heading"].update(classes=1),
        lambda document: document["heading"].update(classes=True),
        lambda document: document["heading"].update(share=7),
        lambda document: document["heading"].update(alpha=3),
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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "proof.json").write_bytes(content)

    assert "proof.json" in refused(check_proof, tmp_path / "proof.json", error=FingerprintError)
    assert "nowhere" in refused(check_proof, tmp_path / "nowhere", error=FingerprintError)


def test_nobody_accused_leaves_nothing_to_prove(asked, tmp_path):
    folder, vault, _, _ = asked
    result = query(Served(folder), vault, transcript=tmp_path / "transcript")

    said = refused(write_proof, tmp_path / "proof", tmp_path / "transcript", result, vault, error=FingerprintError)
    assert "Nobody is accused" in said


def test_a_proof_is_never_written_over(written, proof, asked):
    before = proof.read_bytes()

    said = refused(
        write_proof, proof, written[0].with_name("transcript"), written[1], asked[1], error=FingerprintError
    )

    assert "another file" in said
    assert proof.read_bytes() == before
    assert [path.name for path in proof.parent.iterdir()] == ["proof.json"]
