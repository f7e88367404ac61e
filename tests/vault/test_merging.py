import shutil
from dataclasses import astuple, replace
from functools import partial, reduce
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_fingerprint import Vault
from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import commitment, new_secret
from hf_fingerprint.registration import register
from hf_fingerprint.vault import (
    Ancestor,
    CopyRecord,
    begin_publication,
    begin_training,
    confirm_publication,
    copies_in_training,
)
from hf_fingerprint.vault.issuers import add_issuer, issuers, remove_issuer
from hf_fingerprint.vault.merging import MergeReport, merge, merge_with_union
from hf_fingerprint.vault.schema import base_to_row, row_with_ancestor
from hf_fingerprint.vault.sealing import encrypt, new_identity, seal
from hf_fingerprint.vault.snapshots import TABLE_KEYS, PublicationRow, Snapshot, insert_rows, take_snapshot
from hf_fingerprint.vault.union import union_snapshots
from tests.helpers.checkpoint_files import NO_DEADLINE
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, new_vault, save_plain


WHOLE, SHA = "f0" * 32, "5a" * 20
refusal = partial(refused, error=VaultError)


# The union of snapshots

KEY = "age1" + "q" * 58
COPIES = [
    CopyRecord(
        str(n) * 16, f"base {n % 2}", f"recipient {n}", "written", f"/out/{n}", WHOLE, str(n), "2026", b"s%d" % n
    )
    for n in range(4)
]


def base_row(base_id: str, ancestor: Ancestor | None = None) -> tuple:
    return row_with_ancestor((base_id, WHOLE, "{}", b"a", bytes(32), ""), ancestor)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Snapshots of one history, each at some moment, as independent issuers have them."""
    copies, published = {}, {}
    for record in draw(st.lists(st.sampled_from(COPIES), unique=True)):
        copies[record.copy_id] = replace(record, state=draw(st.sampled_from(["written", "issued"])))
        if draw(st.booleans()):
            row = PublicationRow(record.copy_id, f"org/{record.copy_id}", "confirmed", "{}", "sha", None, "2026")
            if draw(st.booleans()):
                files, created = draw(st.sampled_from(["{}", '{"a": 1}'])), draw(st.sampled_from(["2025", "2027"]))
                row = row._replace(state="begun", revision=None, files=files, created=created)
            published[record.copy_id] = row._replace(account=draw(st.sampled_from([None, "a", "b"])))
    bound = draw(st.sets(st.sampled_from(sorted(copies)))) if copies else set()
    needed = {record.base_id for record in copies.values()}
    others = draw(st.sets(st.sampled_from(["base 0", "base 1", "base 2"])))
    return Snapshot(
        public_key=KEY,
        bases={base_id: base_row(base_id) for base_id in sorted(needed | others)},
        copies=copies,
        publications=published,
        answering={copy_id: (copy_id,) for copy_id in bound},
        issuers=draw(st.dictionaries(st.sampled_from(["age1a", "age1b"]), st.sampled_from(["", "ci", "runner"]))),
    )


@NO_DEADLINE
@given(snapshots(), snapshots(), snapshots())
def test_neither_the_order_of_merging_nor_merging_again_makes_a_difference(one, two, three):
    assert union_snapshots(one, two) == union_snapshots(two, one)
    assert union_snapshots(union_snapshots(one, two), three) == union_snapshots(one, union_snapshots(two, three))
    assert union_snapshots(one, one) == one
    assert union_snapshots(union_snapshots(one, two), two) == union_snapshots(one, two)


ANCESTORS = [Ancestor("org/vit", "7b" * 20, "c2" * 32), Ancestor("/models/vit", None, "c3" * 32)]


@st.composite
def snapshots_with_ancestors(draw: st.DrawFn) -> Snapshot:
    """Snapshots of one history, in which a base got an ancestor at some moment."""
    found = draw(snapshots())
    rows = {base_id: base_row(base_id, draw(st.sampled_from([None, ANCESTORS[0]]))) for base_id in found.bases}
    return replace(found, bases=rows)


@NO_DEADLINE
@given(snapshots_with_ancestors(), snapshots_with_ancestors(), snapshots_with_ancestors())
def test_an_ancestor_enters_in_any_order_of_merging(one, two, three):
    both = union_snapshots(one, two)

    assert both == union_snapshots(two, one)
    assert union_snapshots(both, three) == union_snapshots(one, union_snapshots(two, three))
    assert union_snapshots(both, two) == both
    assert not both.faults
    for base_id, row in both.bases.items():
        named = any("ancestor" in each.bases.get(base_id, ("", "", ""))[2] for each in (one, two))
        assert row == base_row(base_id, ANCESTORS[0] if named else None)


@NO_DEADLINE
@given(snapshots(), snapshots())
def test_of_two_ancestors_the_one_that_is_here_stays_and_no_copy_is_refused(one, two):
    shared = one.bases.keys() & two.bases.keys()
    assume(shared)
    base_id = sorted(shared)[0]
    first, second = (
        replace(each, bases={**each.bases, base_id: base_row(base_id, ancestor)})
        for each, ancestor in zip((one, two), ANCESTORS, strict=True)
    )

    joined = union_snapshots(first, second, "vault A", "vault B")

    assert joined.bases[base_id] == first.bases[base_id]
    assert [(fault.table, fault.key) for fault in joined.faults] == [("ancestors", base_id)]
    assert "in vault B than in vault A" in joined.faults[0].problem
    assert joined.copies.keys() == one.copies.keys() | two.copies.keys()


@NO_DEADLINE
@given(snapshots(), snapshots())
def test_nothing_is_lost_and_nothing_made_up(one, two):
    both = union_snapshots(one, two)

    for table in TABLE_KEYS:
        assert both.rows(table).keys() == one.rows(table).keys() | two.rows(table).keys()
    for copy_id, record in both.copies.items():
        sources = [known.copies[copy_id] for known in (one, two) if copy_id in known.copies]
        assert record in sources
        assert record.state == max((source.state for source in sources), key=["written", "issued"].index)
    for copy_id, row in both.publications.items():
        sources = [known.publications[copy_id] for known in (one, two) if copy_id in known.publications]
        assert row.state == max(source.state for source in sources)
        assert (row.files, row.revision) in [(s.files, s.revision) for s in sources if s.state == row.state]
        assert row.account in {source.account for source in sources}


@NO_DEADLINE
@given(
    snapshots(),
    snapshots(),
    st.sampled_from(["base_id", "recipient", "out", "content_hash", "commitment", "created", "sealed"]),
)
def test_of_a_record_that_differs_the_one_that_is_here_stays_and_the_other_is_named(one, two, column):
    shared = one.copies.keys() & two.copies.keys()
    assume(shared)
    copy_id = sorted(shared)[0]
    other = b"other" if column == "sealed" else "other"
    forged = replace(two, copies={**two.copies, copy_id: replace(two.copies[copy_id], **{column: other})})

    for first, second in ((one, forged), (forged, one)):
        joined = union_snapshots(first, second, "vault A", "vault B")
        (fault,) = [fault for fault in joined.faults if fault.table == "copies"]
        assert copy_id in fault.key
        assert "vault A" in fault.problem
        assert "vault B" in fault.problem
        assert joined.copies[copy_id] == first.copies[copy_id]
        assert joined.copies.keys() == first.copies.keys() | second.copies.keys()
        below = {fault.key for fault in joined.faults if fault.table != "copies"}
        assert below <= {copy_id}


@NO_DEADLINE
@given(snapshots(), snapshots(), st.integers(1, 5))
def test_a_base_that_differs_is_refused_by_name_with_all_that_depends_on_it(one, two, column):
    shared = one.bases.keys() & two.bases.keys()
    assume(shared)
    base_id = sorted(shared)[0]
    row = list(two.bases[base_id])
    row[column] = b"other" if isinstance(row[column], bytes) else "other"
    forged = replace(two, bases={**two.bases, base_id: tuple(row)})

    for first, second in ((one, forged), (forged, one)):
        joined = union_snapshots(first, second)
        assert joined.bases == {**second.bases, **first.bases}
        new = {key for key, copy in second.copies.items() if copy.base_id == base_id and key not in first.copies}
        assert not new & joined.copies.keys()
        assert not new & (joined.answering.keys() | joined.publications.keys())
        assert [fault.key for fault in joined.faults if fault.table == "bases"] == [base_id]
        assert {fault.key.split()[0] for fault in joined.faults if fault.table == "copies"} == new
        assert joined.copies.keys() == first.copies.keys() | (second.copies.keys() - new)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"repo": "org/a"}, {"repo": "org/b"}),
        ({"repo": "org/a", "state": "begun", "revision": None}, {"repo": "org/b"}),
        ({"revision": "a"}, {"revision": "b"}),
        ({"files": "{}"}, {"files": '{"a": 1}'}),
    ],
)
def test_a_publication_elsewhere_is_refused_and_the_one_that_is_here_stays(one, other):
    row = PublicationRow(COPIES[0].copy_id, "org/a", "confirmed", "{}", "sha", None, "2026")
    snapshot = Snapshot(KEY, {"base 0": base_row("base 0")}, {COPIES[0].copy_id: COPIES[0]}, {}, {})
    first, second = (replace(snapshot, publications={row.copy_id: row._replace(**some)}) for some in (one, other))

    for mine, theirs in ((first, second), (second, first)):
        joined = union_snapshots(mine, theirs)
        assert [(fault.table, fault.key) for fault in joined.faults] == [("publications", row.copy_id)]
        assert joined.publications == mine.publications


def test_other_tracing_identities_are_refused_with_the_remedy():
    empty = Snapshot(KEY, {}, {}, {}, {})

    text = refusal(union_snapshots, empty, replace(empty, public_key="age1other"), "vault A", "vault B")

    assert "vault A" in text
    assert "rotate" in text


def test_snapshots_do_not_show_secrets():
    shown = repr(Snapshot(KEY, {"b": base_row("b")}, {"c": COPIES[0]}, {}, {"age1a": "ci"}))

    assert shown == f"Snapshot(public_key='{KEY}', issuers={{'age1a': 'ci'}})"


# Vaults


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An empty vault and one with a base, of one tracing identity."""
    root = tmp_path_factory.mktemp("template")
    vault = new_vault(root / "empty")
    shutil.copytree(root / "empty", root / "vault")
    register(save_plain(root / "model"), Vault(root / "vault"), PLAIN_SETTINGS)
    assert vault.bases() == []
    return root


@pytest.fixture
def pair(template, tmp_path):
    """Two issuers' vaults with the same base."""
    return [Vault(shutil.copytree(template / "vault", tmp_path / name)) for name in ("one", "two")]


@pytest.fixture
def empty(template, tmp_path):
    return Vault(shutil.copytree(template / "empty", tmp_path / "empty"))


def written(vault: Vault, name: str, issued: bool = True) -> CopyRecord:
    record, key = vault.begin_copy(vault.bases()[0], name, f"/copies/{name}")
    record = vault.mark_written(record, key, WHOLE)
    if issued:
        vault.mark_issued(record.copy_id)
    return vault.copies()[-1]


def test_each_issuers_records_are_there_once_with_their_keys(pair):
    one, two = pair
    mine, theirs = [written(one, name) for name in "ab"], [written(two, name) for name in "cb"]
    begin_publication(two, theirs[0].copy_id, "org/c", {})
    confirm_publication(two, theirs[0].copy_id, SHA)
    add_issuer(two, new_identity()[1], "ci")

    report = merge(one, take_snapshot(two))

    assert one.copies() == mine + theirs
    assert report == MergeReport(0, 2, 0, 1, report.issuers)
    assert len(report.issuers) == 1
    assert "2 new records" in report.describe()
    assert "new issuer ci (age1" in report.describe()
    assert issuers(one) == issuers(two)
    one.unlock(PASSPHRASE)
    assert len(set(one.copy_keys(one.copies()))) == 4
    assert merge(one, take_snapshot(two)) == MergeReport()


def test_an_ancestor_that_a_colleague_recorded_is_taken_and_named(pair, tmp_path):
    one, two = pair
    (base,) = two.bases()
    descended = two.set_ancestor(base, ANCESTORS[0])
    copy = written(two, "a")

    report = merge(one, take_snapshot(two))

    place = f"org/vit@{'7b' * 20}"
    assert report == MergeReport(copies=1, ancestors=(f"{base.base_id} ({place})",))
    assert f"new ancestor of base {base.base_id} ({place})" in report.describe()
    assert one.bases() == [descended]
    assert merge(one, take_snapshot(two)) == merge(two, take_snapshot(one)) == MergeReport()
    assert one.copies() == [copy]


def test_another_ancestor_than_the_recorded_one_is_refused_and_the_copies_enter(pair):
    one, two = pair
    (base,) = one.bases()
    kept = one.set_ancestor(base, ANCESTORS[0])
    two.set_ancestor(base, ANCESTORS[1])
    copy = written(two, "a")

    report = merge(one, take_snapshot(two))

    assert one.bases() == [kept]
    assert one.copies() == [copy]
    assert not report.complete
    (fault,) = report.refused
    assert fault.describe().startswith(f"The ancestor of base {base.base_id} is another model in")
    assert "--ancestor" in fault.problem


def test_a_colleague_with_another_record_of_the_base_cannot_hide_that_behind_an_ancestor(pair):
    one, two = pair
    (base,) = one.bases()
    forged = replace(base, ancestor=ANCESTORS[0], certified=base.certified - 1)
    snapshot = take_snapshot(two)
    snapshot = replace(snapshot, bases={base.base_id: base_to_row(forged)})

    report = merge(one, snapshot)

    assert one.bases() == [base]
    assert [fault.table for fault in report.refused] == ["bases"]


def test_merged_both_ways_they_hold_the_same(pair, empty):
    one, two = pair
    written(one, "a"), written(two, "b", issued=False), add_issuer(one, new_identity()[1], "ci")

    merge(one, take_snapshot(two)), merge(two, take_snapshot(one)), merge(empty, take_snapshot(one))

    assert take_snapshot(one) == take_snapshot(two) == take_snapshot(empty)
    assert [record.recipient for record in two.copies()] == ["b", "a"]
    assert [record.recipient for record in empty.copies()] == ["a", "b"]


def test_three_vaults_hold_the_same_in_any_order_of_merges(template, tmp_path):
    vaults = [Vault(shutil.copytree(template / "vault", tmp_path / name)) for name in "abc"]
    for vault, name in zip(vaults, "abc", strict=True):
        written(vault, name)
    parts = [take_snapshot(vault) for vault in vaults]

    for number, order in enumerate(permutations(parts)):
        into = Vault(shutil.copytree(template / "empty", tmp_path / f"into {number}"))
        for part in order:
            merge(into, part)
        assert take_snapshot(into) == reduce(union_snapshots, parts)


def test_a_record_moves_forward_and_never_back(pair):
    one, two = pair
    record = written(one, "a", issued=False)
    merge(two, take_snapshot(one))
    early = take_snapshot(two)
    one.mark_issued(record.copy_id)

    assert merge(two, take_snapshot(one)) == MergeReport(moved=1)
    assert merge(two, early) == MergeReport()
    assert [copy.state for copy in two.copies()] == ["issued"]


def test_a_publication_moves_forward_and_never_back(pair):
    one, two = pair
    record = written(one, "a")
    begin_publication(one, record.copy_id, "org/a", {"x": "0a" * 32})
    merge(two, take_snapshot(one))
    early = take_snapshot(one)
    confirm_publication(one, record.copy_id, SHA)

    assert merge(two, take_snapshot(one)) == MergeReport(publications=1)
    assert merge(two, early) == MergeReport()
    assert take_snapshot(two) == take_snapshot(one)


def test_a_model_registered_separately_is_two_bases(template, empty, tmp_path):
    one, two = (Vault(shutil.copytree(template / "empty", tmp_path / name)) for name in ("one", "two"))
    for vault in (one, two):
        register(template / "model", vault, PLAIN_SETTINGS)
        written(vault, vault.folder.name)

    assert merge(one, take_snapshot(two)).bases == 1

    first, second = one.bases()
    assert first.content_hash == second.content_hash
    assert first.secret != second.secret
    assert one.base_with_hash(first.content_hash).base_id == first.base_id
    assert register(template / "model", one, PLAIN_SETTINGS).base_id == first.base_id
    assert {record.base_id for record in one.copies()} == {first.base_id, second.base_id}


def test_of_equal_base_ids_with_different_secrets_the_one_that_is_here_stays(template, tmp_path):
    """Format 1 gave a model the same id wherever it was registered."""
    one, two = (Vault(shutil.copytree(template / "vault", tmp_path / name)) for name in ("one", "two"))
    base = replace(one.bases()[0], base_id="0123456789ab", content_hash="0123456789ab" + "a" * 52)
    one.add_base(base), two.add_base(replace(base, secret=new_secret()))
    record, key = two.begin_copy(two.bases()[1], "a", "/copies/a")
    two.mark_written(record, key, WHOLE)
    before = take_snapshot(one)

    report = merge(one, take_snapshot(two))

    assert report.copies == 0
    assert [fault.table for fault in report.refused] == ["bases", "copies"]
    assert report.refused[0].key == "0123456789ab"
    assert "keep both vaults" in report.refused[0].problem
    assert "(a)" in report.refused[1].key
    assert take_snapshot(one) == before


def test_what_contradicts_is_refused_and_the_rest_enters(pair):
    one, two = pair
    record = written(one, "a")
    merge(two, take_snapshot(one))
    written(two, "b"), add_issuer(two, new_identity()[1], "ci")
    with two.connect() as connection:
        connection.execute("UPDATE copies SET commitment = ? WHERE copy_id = ?", ("00" * 32, record.copy_id))
    before = rows_of(two)

    report = merge(one, take_snapshot(two), None, "the vault of ci")

    (fault,) = report.refused
    assert fault.key == f"{record.copy_id} (a)"
    assert "the vault of ci" in fault.problem
    assert str(one.folder) in fault.problem
    assert not report.complete
    assert one.copies() == [record, two.copies()[-1]]
    assert issuers(one) == issuers(two)
    assert rows_of(two) == before


def rows_of(vault: Vault) -> dict[str, list[tuple]]:
    with vault.connect() as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}


def test_an_interrupted_merge_changes_nothing(pair, monkeypatch):
    one, two = pair
    for name in "abc":
        begin_publication(two, written(two, name).copy_id, f"org/{name}", {})
    before = rows_of(one)
    from hf_fingerprint.vault import merging

    real = merging.insert_rows

    def stops(connection, table, rows):
        real(connection, table, rows)
        if table == "publications":
            raise KeyboardInterrupt

    monkeypatch.setattr(merging, "insert_rows", stops)
    with pytest.raises(KeyboardInterrupt):
        merge(one, take_snapshot(two))
    monkeypatch.undo()

    assert rows_of(one) == before
    assert merge(one, take_snapshot(two)).copies == 3


def test_unfinished_copies_are_not_merged(pair):
    one, two = pair
    base = two.bases()[0]
    two.begin_copy(base, "bob", "/out")
    begin_training(two, base, "carol")

    assert merge(one, take_snapshot(two)) == MergeReport()
    assert one.copies() == []
    assert [record.recipient for record in two.copies()] == ["bob", "carol"]
    assert copies_in_training(one) == set()


@pytest.mark.parametrize("resumed_record", [False, True])
def test_a_copy_begun_here_and_finished_in_a_copy_of_the_folder_moves_forward(pair, tmp_path, resumed_record):
    one, _ = pair
    record, key = one.begin_copy(one.bases()[0], "bob", "/out")
    clone = Vault(shutil.copytree(one.folder, tmp_path / "clone"))
    if resumed_record:
        record, key = clone.begin_copy(clone.bases()[0], "bob", "/out", resumed_record=record)
    done = clone.mark_written(record, key, WHOLE)

    assert merge(one, take_snapshot(clone)) == MergeReport(moved=1)

    one.unlock(PASSPHRASE)
    assert one.copies() == [done]
    assert one.copy_key(done) == key


def test_answering_copies_are_merged_with_their_records(pair, tmp_path):
    one, two = pair
    base = two.bases()[0]
    begun, begun_key = one.begin_copy(base, "begun here", "/out")
    clone = Vault(shutil.copytree(one.folder, tmp_path / "clone"))
    done = clone.mark_written(begun, begun_key, WHOLE, is_answering=True)
    merge(two, take_snapshot(clone))
    plain, bound = (two.begin_copy(base, name, "/out") for name in ("plain", "bound"))
    two.mark_written(*plain, WHOLE)
    two.mark_written(*bound, WHOLE, is_answering=True)

    for _ in range(2):
        merge(one, take_snapshot(two))
        assert one.answering_ids(base.base_id) == {done.copy_id, bound[0].copy_id}
        assert {record.recipient for record in one.copies()} == {"begun here", "plain", "bound"}
    assert one.answering_ids("another base") == set()


def test_but_not_while_a_training_uses_another_key(pair, tmp_path):
    one, _ = pair
    record, key = begin_training(one, one.bases()[0], "bob")
    clone = Vault(shutil.copytree(one.folder, tmp_path / "clone"))
    same = Vault(shutil.copytree(one.folder, tmp_path / "same"))
    other, forged = clone.begin_copy(clone.bases()[0], "bob", "/out", resumed_record=record)
    clone.mark_written(other, forged, WHOLE)
    same.mark_written(record, key, WHOLE)

    (fault,) = merge(one, take_snapshot(clone)).refused
    assert record.copy_id in fault.key
    assert "finish that copy here first" in fault.problem
    assert one.copies() == [record]
    assert merge(one, take_snapshot(same)).moved == 1


def test_a_removed_issuer_stays_removed(pair):
    one, two = pair
    public_key = new_identity()[1]
    add_issuer(one, public_key, "ci")
    merge(two, take_snapshot(one))
    remove_issuer(one, "ci")

    assert merge(one, take_snapshot(two)).issuers == ()
    assert issuers(one) == {}
    merge(two, take_snapshot(one))
    assert issuers(two) == {}


def test_a_vault_of_another_identity_is_refused_unless_that_is_given(pair, tmp_path):
    one, _ = pair
    other = new_vault(tmp_path / "other")
    register(save_plain(tmp_path / "model"), other, PLAIN_SETTINGS)
    record, key = other.begin_copy(other.bases()[0], "dora", "/out")
    done = other.mark_written(record, key, WHOLE)

    assert "rotate" in refusal(merge, one, take_snapshot(other))
    assert one.copies() == []
    other.unlock(PASSPHRASE)
    assert merge(one, take_snapshot(other), other.age_identity()).copies == 1

    one.unlock(PASSPHRASE)
    (found,) = one.copies()
    assert replace(found, sealed=b"") == replace(done, sealed=b"")
    assert one.copy_key(found) == key
    assert merge(one, take_snapshot(other), other.age_identity()) == MergeReport()


def test_a_forged_record_in_a_vault_of_another_identity_is_refused(pair, tmp_path):
    one, _ = pair
    other = new_vault(tmp_path / "other")
    register(save_plain(tmp_path / "model"), other, PLAIN_SETTINGS)
    record = written(other, "dora")
    with other.connect() as connection:
        connection.execute("UPDATE copies SET commitment = ?", (commitment(bytes(32), "dora", WHOLE),))
    other.unlock(PASSPHRASE)

    (fault,) = merge(one, take_snapshot(other), other.age_identity()).refused
    assert record.copy_id in fault.key
    assert one.copies() == []


@pytest.mark.parametrize("junk", ["sealed", "commitment"])
def test_with_the_identity_a_new_record_that_does_not_open_is_refused(pair, junk):
    """It would stand in the way of every trace of its base."""
    one, two = pair
    record = written(two, "dora")
    with two.connect() as connection:
        connection.execute(
            f"UPDATE copies SET {junk} = ?",
            (encrypt(b"junk", new_identity()[1]) if junk == "sealed" else "00" * 32,),
        )
    one.unlock(PASSPHRASE)

    good = written(two, "emil")
    report = merge(one, take_snapshot(two), one.age_identity())
    assert [fault.key for fault in report.refused] == [f"{record.copy_id} (dora)"]
    assert one.copies() == [good]


def test_with_the_identity_an_authentic_record_enters(pair):
    one, two = pair
    record = written(two, "dora")
    one.unlock(PASSPHRASE)

    assert merge(one, take_snapshot(two), one.age_identity()).copies == 1
    assert one.copies() == [record]


def test_another_process_may_issue_meanwhile(pair):
    one, two = pair
    written(two, "a")
    snapshot = take_snapshot(two)
    record = written(one, "b")

    merge(one, snapshot)

    assert [copy.recipient for copy in one.copies()] == ["b", "a"]
    assert astuple(one.copies()[0]) == astuple(record)


# Rows here that can't be used


@pytest.mark.parametrize("column", ["recipient", "commitment", "sealed", "created", "base_id", "out"])
def test_a_row_here_that_cannot_be_used_is_left_and_named_and_blocks_nothing(pair, column):
    one, two = pair
    record = written(one, "a")
    merge(two, take_snapshot(one))
    good = written(two, "b")
    with one.connect() as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(f"UPDATE copies SET {column} = x'1b5b' WHERE copy_id = ?", (record.copy_id,))
    before = rows_of(one)["copies"]

    report, both = merge_with_union(one, take_snapshot(two))

    assert [(fault.table, fault.key.split()[0]) for fault in report.unusable] == [("copies", record.copy_id)]
    assert [fault.key for fault in report.refused] == [f"{record.copy_id} (a)"]
    assert "can't be used" in report.refused[0].problem
    assert not report.complete
    assert rows_of(one)["copies"][: len(before)] == before
    assert take_snapshot(one).copies == {good.copy_id: good}
    assert both.copies == {record.copy_id: record, good.copy_id: good}
    assert both.faults == ()


@pytest.mark.parametrize("table", ["bases", "publications", "issuers"])
def test_an_unusable_row_of_another_table_blocks_nothing(pair, table):
    one, two = pair
    record = written(one, "a")
    begin_publication(one, record.copy_id, "org/a", {})
    add_issuer(one, new_identity()[1], "ci")
    merge(two, take_snapshot(one))
    column = {"bases": "seal", "publications": "files", "issuers": "name"}[table]
    with one.connect() as connection:
        connection.execute(f"UPDATE {table} SET {column} = x'1b5b'")
    before = rows_of(one)[table]

    report, both = merge_with_union(one, take_snapshot(two))

    assert report.unusable[0].table == table
    assert report.refused[0].table == table
    assert rows_of(one)[table] == before
    assert both == take_snapshot(two)


def test_with_the_identity_a_record_here_that_does_not_open_replaces_no_good_one(pair):
    one, two = pair
    record = written(one, "a")
    merge(two, take_snapshot(one))
    with one.connect() as connection:
        connection.execute("UPDATE copies SET commitment = ?", ("00" * 32,))
    one.unlock(PASSPHRASE)
    tampered = one.copies()

    report, both = merge_with_union(one, take_snapshot(two), one.age_identity())

    assert [fault.key for fault in report.unusable] == [f"{record.copy_id} (a)"]
    assert [fault.key for fault in report.refused] == [f"{record.copy_id} (a)"]
    assert one.copies() == tampered
    assert both.copies == {record.copy_id: record}


# Records that say the same under another id


def duplicate_of(record: CopyRecord, vault: Vault, **other: object) -> CopyRecord:
    """A record like another one, as a rogue issuer can write it who can't open that one's seal."""
    sealed = seal(new_secret(), "0" * 16, record.base_id, record.recipient, vault.public_key)
    duplicate = replace(record, **({"copy_id": "0" * 16, "sealed": sealed} | other))
    with vault.connect() as connection:
        insert_rows(connection, "copies", [astuple(duplicate)])
    return duplicate


@pytest.mark.parametrize("unlocked", [False, True])
@pytest.mark.parametrize("copied", [{}, {"sealed": None, "commitment": "00" * 32}])
def test_a_second_record_of_one_copy_is_refused_by_name(pair, unlocked, copied):
    one, two = pair
    record = written(one, "a")
    merge(two, take_snapshot(one))
    duplicate_of(record, two, **{**copied, **({"sealed": record.sealed} if "sealed" in copied else {})})
    one.unlock(PASSPHRASE)

    report = merge(one, take_snapshot(two), one.age_identity() if unlocked else None)

    assert [fault.key for fault in report.refused] == [f"{'0' * 16} (a)"]
    assert one.copies() == [record]


def test_a_forged_duplicate_that_came_first_does_not_keep_the_authentic_record_out(pair):
    """A rogue issuer reads a commitment on a model card and records it before its copy's own record arrives."""
    one, two = pair
    record = written(two, "a")
    rogue = Vault(shutil.copytree(one.folder, one.folder.parent / "rogue"))
    duplicate = duplicate_of(record, rogue)
    merge(one, take_snapshot(rogue))
    assert one.copies() == [duplicate]

    locked, both = merge_with_union(one, take_snapshot(two))
    one.unlock(PASSPHRASE)
    report = merge(one, take_snapshot(two), one.age_identity())

    assert [fault.key for fault in locked.refused] == [f"{record.copy_id} (a)"]
    assert set(both.copies) == {duplicate.copy_id, record.copy_id}
    assert [fault.key for fault in report.unusable] == [f"{duplicate.copy_id} (a)"]
    assert report.copies == 1
    assert record in one.copies()


def test_a_base_replaces_one_of_the_same_weights_only(template, pair):
    one, two = pair
    (base,) = one.bases()
    other = replace(base, base_id="0123456789ab", content_hash="0123456789ab" + "a" * 52, secret=new_secret())
    two.add_base(replace(other, replaces=base.base_id))

    (fault,) = merge(one, take_snapshot(two)).refused

    assert (fault.table, fault.key) == ("bases", "0123456789ab")
    assert base.base_id in fault.problem
    assert one.bases() == [base]


def test_a_page_of_this_vault_that_was_lost_blocks_no_merge_and_is_named(pair):
    one, two = pair
    (base,) = one.bases()
    for number in range(60):
        record, key = one.begin_copy(base, f"recipient {number}", f"/out/{number}")
        one.mark_written(record, key, WHOLE)
    good = written(two, "b")
    with one.connect() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    content = bytearray((one.folder / "vault.db").read_bytes())
    leaves = [
        at for at in range(0, len(content), 4096) if content[at] == 13
    ]  # of tables; SQLite adds to no lost index
    page = next(at for at in leaves if b"/out/30" in content[at : at + 4096])
    content[page : page + 8] = b"\xff" * 8
    (one.folder / "vault.db").write_bytes(bytes(content))

    report, both = merge_with_union(one, take_snapshot(two))

    lost = [fault for fault in report.unusable if fault.table == "copies"]
    assert lost
    assert report.copies == 1
    assert both.copies[good.copy_id] == good
    assert 40 < len(both.copies) < 61
