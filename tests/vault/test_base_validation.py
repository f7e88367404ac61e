"""Records of bases whose seal fits and which this package would not make: a rogue issuer can seal what it likes."""

import hashlib
import hmac
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.errors import FingerprintWarning, VaultError
from hf_fingerprint.keys import derive
from hf_fingerprint.vault import (
    Ancestor,
    Base,
    Calibration,
    Carrier,
    CompactMark,
    TensorRecord,
    Vault,
    read_vault_folder,
    take_snapshot,
)
from hf_fingerprint.vault.base_validation import check_base
from hf_fingerprint.vault.merging import merge
from hf_fingerprint.vault.packing import open_pack, pack_snapshot
from hf_fingerprint.vault.schema import base_from_row, base_to_row, read_base
from hf_fingerprint.vault.sealing import AgeIdentity, new_identity
from hf_fingerprint.vault.snapshots import insert_rows
from tests.helpers.checkpoint_files import NO_DEADLINE
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE


refusal = partial(refused, error=VaultError)
BASE = Base(
    base_id="53e1e7b2c8d4",
    source="org/tiny-vit",
    revision="9f" * 20,
    content_hash="53e1e7b2c8d4" + "a1" * 26,
    tensors={
        "head.weight": TensorRecord("F32", (2, 3), "0a" * 32),
        "half.weight": TensorRecord("F16", (2, 3), "0b" * 32),
        "head.bias": TensorRecord("I64", (), "0c" * 32),
    },
    carriers=(
        Carrier("head.weight", 0.004, np.array([0.5, 0.0], np.float32)),
        Carrier("half.weight", 1.0, np.array([65504.0, 1e-8], np.float32)),
    ),
    family="tardos",
    length=4096,
    coalition=20,
    certified=12,
    certified_by="simulated: minority",
    alpha=0.05,
    expected_recipients=1000,
    calibration=Calibration("images", 256, 1e-3, 9.6e-05, 0.9985),
    secret=bytes(range(32)),
)


def carrying(amplitude, eps=0.004, name="head.weight"):
    return {"carriers": (Carrier(name, eps, np.array(amplitude, np.float32)),)}


def calibrated(**changed):
    return {"calibration": replace(BASE.calibration, **changed)}


def descending(source="org/vit", revision="7b" * 20, content_hash="c2" * 32):
    return {"ancestor": Ancestor(source, revision, content_hash)}


WRONG = {
    "alpha of certainty": ({"alpha": 0.99}, "its alpha is 0.99"),
    "alpha a little too high": ({"alpha": 0.0501}, "its alpha is 0.0501"),
    "alpha 0": ({"alpha": 0}, "its alpha is 0"),
    "alpha below 0": ({"alpha": -1e-6}, "its alpha is -1e-06"),
    "alpha not a number": ({"alpha": float("nan")}, "its alpha is nan"),
    "alpha in words": ({"alpha": "0.01"}, "its alpha is 0.01"),
    "alpha true": ({"alpha": True}, "its alpha is True"),
    "infinite amplitude": (carrying([0.5, np.inf]), "impossible amplitudes"),
    "amplitude not a number": (carrying([np.nan, 0.5]), "impossible amplitudes"),
    "huge amplitude": (carrying([3e38, 0.5], 0.004), "impossible amplitudes"),
    "more than half precision holds": (carrying([70.0, 0.5], 0.001, "half.weight"), "impossible amplitudes"),
    "eps 0": (carrying([0.5, 0.5], 0.0), "is 0.0, not above 0"),
    "eps above 1": (carrying([0.5, 0.5], 1.5), "is 1.5, not above 0"),
    "eps not a number": (carrying([0.5, 0.5], float("nan")), "is nan, not above 0"),
    "eps in words": (carrying([0.5, 0.5], "0.1"), "is 0.1, not above 0"),
    "a carrier twice": ({"carriers": (BASE.carriers[0], BASE.carriers[0])}, "a carrier twice"),
    "a carrier of integers": (carrying([], 0.1, "count"), "can't carry a mark"),
    "source with a line break": ({"source": "org/model\nAccused: mallory"}, "its source org/model Accused: mallory"),
    "source with an escape": ({"source": "/models/\x1b[2Jx"}, "its source /models/"),
    "source that reads backwards": ({"source": "/models/\u202egnp.x"}, "its source"),
    "relative source": ({"source": "../../etc"}, "its source ../../etc is no absolute path"),
    "source in words": ({"source": "run this first"}, "its source run this first"),
    "source with a scheme": ({"source": "https://evil.example/x"}, "its source https"),
    "no source": ({"source": ""}, "its source"),
    "endless source": ({"source": "/" + "x" * 5000}, "its source"),
    "source of another type": ({"source": 7}, "its source 7"),
    "revision with a line break": ({"revision": "main\nx"}, "its revision main x"),
    "endless revision": ({"revision": "a" * 300}, "its revision"),
    "revision of another type": ({"revision": 5}, "its revision 5"),
    "unknown family": (
        {"family": "riddle"},
        "its code is invalid (This version of hf-fingerprint doesn't know the code riddle",
    ),
    "family of another type": ({"family": 5}, "its code is invalid"),
    "odd length": ({"length": 4095}, "a multiple of 8 from 64 to 1048576, got 4095"),
    "huge length": ({"length": 1 << 30}, "from 64 to 1048576"),
    "length not whole": ({"length": 4096.0}, "its length is 4096.0"),
    "no coalition": ({"coalition": 0}, "its coalition is 0"),
    "endless coalition": ({"coalition": 10**40}, "its coalition is 1000"),
    "coalition beyond the family": ({"family": "nuida", "coalition": 900}, "finer than 2^-16"),
    "nobody planned": ({"expected_recipients": 0, "certified": 0}, "its expected_recipients is 0"),
    "certified beyond all": ({"certified": 1001}, "certified for 1001 colluders"),
    "certified below 0": ({"certified": -1}, "certified for -1"),
    "certified by a page": ({"certified_by": "x\ny"}, "its certification"),
    "infinite kl": (calibrated(kl=float("inf")), "calibration's kl is inf"),
    "kl not a number": (calibrated(kl_high=float("nan")), "calibration's kl_high is nan"),
    "kl in words": (calibrated(kl="little"), "calibration's kl is little"),
    "a budget in words": (calibrated(max_kl="all"), "calibration's max_kl is all"),
    "a budget of everything": (calibrated(max_kl=2.0), "its budget is 2.0"),
    "an agreement of more than all": (calibrated(min_agreement=1.5), "its smallest agreement is 1.5"),
    "an agreement in words": (calibrated(min_agreement="most"), "calibration's min_agreement is most"),
    "an infinite prediction": (
        calibrated(predicted_agreement=float("inf")),
        "calibration's predicted_agreement is inf",
    ),
    "images below 0": (calibrated(images=-1), "count of images is -1"),
    "inputs with a line break": (calibrated(inputs="a\nb"), "calibration's inputs is a b"),
    "output of another type": (calibrated(output=5), "calibration's output is 5"),
    "infinite score": ({"compact": CompactMark(0.1, float("inf"))}, "calibration's spread_score is inf"),
    "replaces a page": ({"replaces": "a\nb"}, "it replaces a b"),
    "a copy of a page": ({"copy_of": "a\nb"}, "it is a copy of a b"),
    "an ancestor with an escape": (descending("/models/\x1b[2Jx"), "its ancestor /models/"),
    "an ancestor elsewhere": (descending("../../etc"), "its ancestor ../../etc is no absolute path"),
    "an ancestor with a scheme": (descending("https://evil.example/x"), "its ancestor https"),
    "an ancestor of another type": (descending(["org/vit"]), "its ancestor ['org/vit']"),
    "an ancestor at a page": (descending(revision="main\nx"), "its ancestor's revision main x"),
    "an ancestor at a number": (descending(revision=5), "its ancestor's revision 5"),
    "an ancestor without a hash": (descending(content_hash=None), "its ancestor's content hash is None"),
    "an ancestor with half a hash": (descending(content_hash="c2" * 16), "its ancestor's content hash is c2c2"),
    "its own ancestor": (descending(content_hash=("53e1e7b2c8d4" + "a1" * 26)), "it is its own ancestor"),
    "a shape below 0": (
        {"tensors": {**BASE.tensors, "x": TensorRecord("F32", (-1,), "0d" * 32)}},
        "its tensor x has the shape [-1]",
    ),
    "a shape not whole": (
        {"tensors": {**BASE.tensors, "x": TensorRecord("F32", (1.5,), "0d" * 32)}},
        "its tensor x has the shape [1.5]",
    ),
    "an endless name": ({"tensors": {**BASE.tensors, "x" * 2000: TensorRecord("F32", (1,), "")}}, "has a tensor with"),
}


def wrong(kind):
    changed, said = WRONG[kind]
    base = BASE
    if kind == "a carrier of integers":
        base = replace(BASE, tensors={**BASE.tensors, "count": TensorRecord("I64", (0,), "0d" * 32)})
    return replace(base, **changed), said


def test_a_record_as_this_package_makes_it_is_read():
    for base in (
        BASE,
        replace(BASE, source="/models/ünï côdé/　x", revision=None, compact=CompactMark(0.03, 50.0), replaces="ab"),
        replace(BASE, source="C:\\models\\x", alpha=1e-300, certified=0),
        replace(BASE, calibration=Calibration("none", 0, 1e-4, None, None, eps=0.004)),
        replace(BASE, **descending()),
        replace(BASE, **descending("/models/vit", None)),
    ):
        found = read_base(base_to_row(base), is_new=True)
        assert found == base


@pytest.mark.parametrize("kind", WRONG)
def test_a_record_that_this_package_would_not_make_is_refused_by_its_name(kind):
    base, said = wrong(kind)

    for refusing in (
        partial(check_base, base),
        partial(check_base, base, is_new=True),
        partial(read_base, base_to_row(base)),
    ):
        text = refusal(refusing)
        assert f"base {BASE.base_id}" in text
        assert said in text
        assert text.isprintable()
        assert BASE.secret.hex() not in text


def test_an_old_negative_amplitude_is_read_and_a_new_one_is_refused():
    base = replace(BASE, **carrying([0.5, -0.25]))

    read_base(base_to_row(base))
    assert "impossible amplitudes" in refusal(read_base, base_to_row(base), True)


# Where records come in


def new_vault(folder, public_key):
    return Vault.create(folder, public_key=public_key)


@pytest.fixture(scope="module")
def identity():
    identity, public_key = new_identity()
    return AgeIdentity(str(identity)), public_key


@pytest.fixture
def mine(tmp_path, identity):
    return new_vault(tmp_path / "mine", identity[1])


@pytest.fixture
def theirs(tmp_path, identity):
    return new_vault(tmp_path / "theirs", identity[1])


def put(vault, row):
    with vault.connect() as connection:
        insert_rows(connection, "bases", [row])


@pytest.mark.parametrize(
    "kind", ["alpha of certainty", "infinite amplitude", "eps above 1", "source with a line break", "infinite kl"]
)
def test_no_way_into_a_vault_takes_such_a_record(mine, theirs, identity, kind):
    base, said = wrong(kind)
    put(theirs, base_to_row(base))
    age_identity, _ = identity
    row = base_to_row(base)
    snapshot = replace(take_snapshot(theirs), bases={row[0]: row}, faults=())

    text = refusal(mine.add_base, base)
    assert BASE.base_id in text
    assert said in text
    with pytest.warns(FingerprintWarning, match=BASE.base_id):
        assert theirs.bases() == []
    for faults in (
        take_snapshot(theirs).faults,
        merge(mine, take_snapshot(theirs)).refused,
        merge(mine, read_vault_folder(theirs.folder)).refused,
        merge(mine, snapshot).refused,
        open_pack(pack_snapshot(snapshot), age_identity, "org/keys").faults,
    ):
        (fault,) = faults
        assert fault.key == BASE.base_id
        assert said in fault.problem
    assert mine.bases() == []
    assert take_snapshot(mine).bases == {}


def test_a_record_that_both_have_already_merges_as_it_did(mine, theirs):
    row = base_to_row(replace(BASE, **carrying([0.5, -0.25])))
    put(mine, row)
    put(theirs, row)

    assert merge(mine, take_snapshot(theirs)).bases == 0
    assert len(mine.bases()) == 1


# Documents of another kind


GENUINE, AMPLITUDES = json.loads(base_to_row(BASE)[2]), base_to_row(BASE)[3]


def sealed_row(document, amplitudes=AMPLITUDES):
    text = document if isinstance(document, str) else json.dumps(document)
    message = f"{BASE.base_id}\n{BASE.content_hash}\n{text}\n".encode() + amplitudes
    seal = hmac.new(derive(BASE.secret, "record"), message, hashlib.sha256).hexdigest()
    return (BASE.base_id, BASE.content_hash, text, amplitudes, BASE.secret, seal)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@NO_DEADLINE
@given(ANYTHING)
def test_a_document_of_any_kind_is_refused(document):
    assert BASE.base_id in refusal(read_base, sealed_row(document))


@NO_DEADLINE
@given(st.sampled_from(sorted(GENUINE)), ANYTHING)
def test_a_field_of_any_kind_is_read_or_refused(name, value):
    try:
        base = read_base(sealed_row({**GENUINE, name: value}), is_new=True)
    except VaultError as error:
        assert BASE.base_id in str(error)
        assert str(error).isprintable()
    else:
        assert 0 < base.alpha <= 0.05
        assert base.codebook().length == base.length
        base.describe()


@pytest.mark.parametrize("name", sorted(GENUINE))
def test_a_document_without_one_of_its_fields_is_refused(name):
    document = {key: value for key, value in GENUINE.items() if key != name}

    assert BASE.base_id in refusal(base_from_row, sealed_row(document))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"alpha": ' + "9" * 5000 + "}", "null", '"base"', "\x00"],
    ids=["empty", "half", "deep", "long number", "null", "text", "NUL"],
)
def test_what_is_no_document_is_refused(text):
    assert BASE.base_id in refusal(base_from_row, sealed_row(text))


@pytest.mark.parametrize("amplitudes", [b"", b"\0" * 3, b"\0" * 12, b"\0" * 20])
def test_amplitudes_of_another_number_are_refused(amplitudes):
    assert BASE.base_id in refusal(base_from_row, sealed_row(GENUINE, amplitudes))


def test_optional_fields_of_a_later_version_are_left_aside():
    assert read_base(sealed_row({**GENUINE, "later": "another", "more": [1, 2]})) == BASE


def test_the_tensors_of_a_record_are_named_once():
    document = {**GENUINE, "tensors": [*GENUINE["tensors"], GENUINE["tensors"][0]]}

    assert BASE.base_id in refusal(base_from_row, sealed_row(document))


def test_a_vault_stays_open_to_its_passphrase_with_such_a_record_in_it(tmp_path):
    vault = Vault.create(tmp_path / "vault", PASSPHRASE)
    put(vault, base_to_row(replace(BASE, alpha=0.99)))

    vault.unlock(PASSPHRASE)
    with pytest.warns(FingerprintWarning, match=r"alpha is 0\.99"):
        assert vault.bases() == []
