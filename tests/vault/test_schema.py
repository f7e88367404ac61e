import hashlib
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault import Ancestor, Base, Calibration, Carrier, CompactMark, TensorRecord
from hf_fingerprint.vault.schema import FORMAT, TABLES, base_from_row, base_to_row, row_with_ancestor
from tests.helpers.checkpoint_files import NO_DEADLINE


BASE = Base(
    base_id="53e1e7b2c8d4",
    source="org/tiny-vit",
    revision="9f" * 20,
    content_hash="53e1e7b2c8d4" + "a1" * 26,
    tensors={
        "blocks.0.attn.qkv.weight": TensorRecord("F32", (2, 3), "0a" * 32),
        "blocks.0.gênant.weight": TensorRecord("BF16", (3, 1, 1), "0b" * 32),
        "head.bias": TensorRecord("I64", (), "0c" * 32),
    },
    carriers=(
        Carrier("blocks.0.attn.qkv.weight", 0.004, np.array([0.5, -0.25], np.float32)),
        Carrier("blocks.0.gênant.weight", 0.002, np.array([1, 2, 3], np.float32)),
    ),
    family="tardos",
    length=4096,
    coalition=20,
    certified=12,
    certified_by="simulated: minority",
    alpha=1e-6,
    expected_recipients=1000,
    calibration=Calibration("images", 256, 1e-3, 9.6e-05, 0.9985),
    secret=bytes(range(32)),
)
GOLDEN_ROW = (
    "53e1e7b2c8d4",
    "53e1e7b2c8d4" + "a1" * 26,
    '{"source":"org/tiny-vit","revision":"9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f","tensors":['
    '["blocks.0.attn.qkv.weight","F32",[2,3],"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"],'
    '["blocks.0.g\\u00eanant.weight","BF16",[3,1,1],"0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"],'
    '["head.bias","I64",[],"0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"]],'
    '"carriers":[["blocks.0.attn.qkv.weight",0.004],["blocks.0.g\\u00eanant.weight",0.002]],'
    '"family":"tardos","length":4096,"coalition":20,"certified":12,"certified_by":"simulated: minority",'
    '"alpha":1e-06,"recipients_planned":1000,'
    '"calibration":{"inputs":"images","images":256,"max_kl":0.001,"kl":9.6e-05,"agreement":0.9985}}',
    bytes.fromhex("0000003f000080be0000803f0000004000004040"),
    bytes(range(32)),
    "28b9fef608fc93ac9b074146f85de8f31e496f9740ec502fce8f60d787f146b0",
)
ANCESTOR = Ancestor("org/tiny-vit-pretrained", "7b" * 20, "c2" * 32)
GOLDEN_MEMBER = (
    ',"ancestor":{"source":"org/tiny-vit-pretrained","revision":"7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b7b",'
    '"content_hash":"c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2"}}'
)
GOLDEN_DESCENDANT_SEAL = "6969a8c38393a6cd429f5c54c0ef5e066962afeac6caaa8d82e5c9bfa750d6be"
# the calibration's fields since version 0.3.0, which older records lack
MEASURED = Calibration(
    *("synthetic", 1000, 1e-3, 3.1e-4, 0.997, "single_label", 1000, 997, 2.6e-4, 3.6e-4, 5e-5, 0.9912, 0.999, None),
    min_agreement=0.995,
    predicted_agreement=0.9964,
    predicted_agreement_low=0.9952,
)
MEASURED_DOCUMENT = (
    '"calibration":{"inputs":"synthetic","images":1000,"max_kl":0.001,"kl":0.00031,"agreement":0.997,'
    '"output":"single_label","decisions":1000,"agreeing":997,"kl_low":0.00026,"kl_high":0.00036,"kl_scatter":5e-05,'
    '"agreement_low":0.9912,"agreement_high":0.999,"min_agreement":0.995,"predicted_agreement":0.9964,'
    '"predicted_agreement_low":0.9952}}'
)
MEASURED_SEAL = "9abb6962b5c003263695ec55e188021a266d061894790e2f8981492e9fa525af"
COLUMNS = ("base_id", "content_hash", "document", "amplitudes", "secret", "seal")


def same(one: Base, other: Base) -> bool:
    """Whether two bases are equal, their amplitudes too, which `==` leaves out."""
    amplitudes = [[carrier.amplitude.tobytes() for carrier in base.carriers] for base in (one, other)]
    return one == other and amplitudes[0] == amplitudes[1]


def test_the_tables_of_format_3_are_frozen():
    assert FORMAT == 3
    digest = hashlib.sha256(TABLES.encode()).hexdigest()
    assert digest == "d8dbd7d023ba864cb57b61ec2df09372e486b68fd87713fd4db98597bac1c47a"


def test_the_row_of_a_base_is_frozen():
    assert base_to_row(BASE) == GOLDEN_ROW


def test_an_old_row_is_read_unchanged():
    assert same(base_from_row(GOLDEN_ROW), BASE)


def test_the_row_of_a_base_with_an_ancestor_is_frozen():
    base, (base_id, whole, text, *rest, _) = replace(BASE, ancestor=ANCESTOR), GOLDEN_ROW
    row = (base_id, whole, text.removesuffix("}") + GOLDEN_MEMBER, *rest, GOLDEN_DESCENDANT_SEAL)

    assert base_to_row(base) == row
    assert same(base_from_row(row), base)
    assert row_with_ancestor(GOLDEN_ROW, ANCESTOR) == row
    assert row_with_ancestor(row, None) == GOLDEN_ROW


def test_what_a_newer_version_added_to_a_document_stays_when_the_ancestor_changes():
    newer = {**json.loads(GOLDEN_ROW[2]), "later": [1]}
    row = (*GOLDEN_ROW[:2], json.dumps(newer), *GOLDEN_ROW[3:])

    found = row_with_ancestor(row, ANCESTOR)

    assert json.loads(found[2])["later"] == [1]
    assert base_from_row(found).ancestor == ANCESTOR


def test_the_row_of_a_base_with_an_agreement_in_its_budget_is_frozen():
    row = base_to_row(replace(BASE, calibration=MEASURED))

    assert row[2] == GOLDEN_ROW[2].partition('"calibration"')[0] + MEASURED_DOCUMENT
    assert row[5] == MEASURED_SEAL
    assert same(base_from_row(row), replace(BASE, calibration=MEASURED))


@st.composite
def bases(draw: st.DrawFn) -> Base:
    """Bases with any names, shapes, numbers and amplitudes."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    names = draw(st.lists(text, min_size=1, max_size=5, unique=True))
    shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)
    tensors = {name: TensorRecord(draw(st.sampled_from(["F32", "BF16"])), draw(shapes), draw(text)) for name in names}
    number = st.floats(allow_nan=False, allow_infinity=False)
    carriers = []
    for name in draw(st.lists(st.sampled_from(names), unique=True)):
        rows = draw(st.lists(st.floats(width=32), min_size=tensors[name].shape[0], max_size=tensors[name].shape[0]))
        carriers.append(Carrier(name, draw(number), np.array(rows, np.float32)))
    calibration = Calibration(draw(text), draw(st.integers()), draw(number), draw(number | st.none()), None)
    return replace(
        BASE,
        base_id=draw(text),
        source=draw(text),
        revision=draw(text | st.none()),
        tensors=tensors,
        carriers=tuple(carriers),
        certified=draw(st.integers()),
        alpha=draw(number),
        calibration=calibration,
        ancestor=draw(st.none() | st.builds(Ancestor, text, text | st.none(), text)),
        secret=draw(st.binary(min_size=32, max_size=32)),
    )


@NO_DEADLINE
@given(bases())
def test_every_base_comes_back_from_its_row_and_the_row_from_the_base(base):
    row = base_to_row(base)

    assert same(base_from_row(row), base)
    assert base_to_row(base_from_row(row)) == row


@pytest.mark.parametrize("name", sorted(field.name for field in fields(Base)))
def test_every_field_of_a_base_is_in_its_row(name):
    other = {
        "tensors": {**BASE.tensors, "new": TensorRecord("F32", (1,), "0d" * 32)},
        "carriers": BASE.carriers[:1],
        "calibration": replace(BASE.calibration, images=257),
        "secret": bytes(32),
        "compact": CompactMark(0.03, 50.0),
        "ancestor": ANCESTOR,
    }
    value = getattr(BASE, name)
    changed = replace(BASE, **{name: other.get(name, value + 1 if isinstance(value, int | float) else f"{value}x")})

    assert base_to_row(changed) != base_to_row(BASE)
    assert same(base_from_row(base_to_row(changed)), changed)


@pytest.mark.parametrize("column", range(5))
def test_every_column_is_under_the_seal(column):
    for position in range(0, len(GOLDEN_ROW[column]), 5):
        value = GOLDEN_ROW[column]
        other = bytes([value[position] ^ 1]) if isinstance(value, bytes) else "~"
        changed = value[:position] + other + value[position + 1 :]
        row = (*GOLDEN_ROW[:column], changed, *GOLDEN_ROW[column + 1 :])
        with pytest.raises(VaultError) as caught:
            base_from_row(row)
        assert row[0] in str(caught.value)


@pytest.mark.parametrize(
    "seal",
    ["", "00" * 32, GOLDEN_ROW[5].upper(), GOLDEN_ROW[5] + "0", "é" * 64, GOLDEN_ROW[5].encode()],
    ids=["empty", "zeros", "upper case", "longer", "not ASCII", "bytes"],
)
def test_nothing_but_the_seal_itself_passes_for_the_seal(seal):
    with pytest.raises(VaultError) as caught:
        base_from_row((*GOLDEN_ROW[:5], seal))

    assert GOLDEN_ROW[0] in str(caught.value)


@pytest.mark.parametrize(("column", "value"), [(3, "text"), (4, "text"), (4, 5), (4, b""), (3, b""), (2, b"{}")])
def test_a_column_of_another_type_is_damage_like_any_other(column, value):
    with pytest.raises(VaultError) as caught:
        base_from_row((*GOLDEN_ROW[:column], value, *GOLDEN_ROW[column + 1 :]))

    assert GOLDEN_ROW[0] in str(caught.value)


def test_bytes_cannot_move_from_one_column_to_the_next():
    base_id, whole, text, amplitudes, secret, seal = GOLDEN_ROW
    shifted = [
        (f"{base_id}\n{whole}", text, amplitudes.decode("latin-1"), b"", secret, seal),
        (base_id[:-1], base_id[-1] + whole, text, amplitudes, secret, seal),
        (base_id, f"{whole}\n{text}", "", amplitudes, secret, seal),
        (base_id, whole, text + "\n", amplitudes[1:], secret, seal),
    ]
    for row in shifted:
        with pytest.raises(VaultError):
            base_from_row(row)


def test_the_document_holds_no_secret():
    document = json.loads(base_to_row(BASE)[2])

    assert "secret" not in document
    assert BASE.secret.hex() not in base_to_row(BASE)[2]
