"""The table of certified coalitions is what the simulations say, at a case at least as hard."""

import numpy as np
import pytest

from examples.benchmarks.certify import CODES, NOISES, RECIPIENTS, SECRET
from hf_fingerprint.codes import FairSigns, Nuida, Tardos, certified, certify, make_codebook
from hf_fingerprint.codes.coalition import CertifiedCoalition, coalition_by_simulation
from hf_fingerprint.codes.design import LENGTHS


ALPHA = 1e-6


@pytest.fixture
def simulated(monkeypatch):
    """The codes that are simulated instead of looked up."""
    found = []

    def simulate(codebook, *case):
        found.append((codebook, *case))
        return CertifiedCoalition(1, "simulated")

    monkeypatch.setattr(certified, "coalition_by_simulation", simulate)
    return found


def test_the_table_has_every_length_noise_and_number_of_recipients():
    table = certified.load_table()

    assert (table["noise"], table["recipients"]) == (NOISES, RECIPIENTS)
    assert len(table["codes"]) == len(CODES)
    for by_length in table["codes"].values():
        assert list(map(int, by_length)) == sorted(LENGTHS, reverse=True)
        assert all(np.shape(sizes) == (len(RECIPIENTS), len(NOISES)) for sizes in by_length.values())


def test_more_noise_never_certifies_more_and_longer_codes_certify_more():
    for by_length in certified.load_table()["codes"].values():
        for sizes in by_length.values():
            assert (np.diff(sizes, axis=1) <= 0).all()
    tardos = certified.load_table()["codes"]["tardos 20"]
    assert tardos["65536"][1][0] > 2 * tardos["4096"][1][0] > 0


@pytest.mark.parametrize(("family", "coalition"), CODES)
@pytest.mark.parametrize(("length", "noise"), [(256, 0.125), (1024, 0.5), (1024, 2.0)])
def test_an_entry_is_what_its_simulation_says(family, coalition, length, noise):
    codebook = make_codebook(family, length, coalition, SECRET)
    found = certify(codebook, 1000, ALPHA, noise)

    assert found.size <= coalition_by_simulation(codebook, 1000, ALPHA, noise, trials=3).size  # less at less noise
    column = NOISES.index(noise)
    before = certified.load_table()["codes"][certified.code_name(codebook)][str(length)][1][column - 1]
    assert found.size == coalition_by_simulation(codebook, 1000, ALPHA, noise, trials=3, limit=before).size
    assert "beforehand" in found.method and f"{noise:.2g}" in found.method


def test_the_next_harder_case_is_looked_up(simulated):
    codebook = Tardos(4096, 20, bytes(32))
    table = certified.load_table()["codes"]["tardos 20"]["4096"]

    assert certify(codebook, 1000, ALPHA, 0.4).size == table[1][NOISES.index(0.4204)]
    assert certify(codebook, 1001, ALPHA, 0.5).size == table[2][NOISES.index(0.5)]
    assert certify(codebook, 100, ALPHA / 10, 0.5).size == table[1][NOISES.index(0.5)]
    assert certify(codebook, 3, ALPHA, 0.03).size == 3
    assert not simulated


@pytest.mark.parametrize(
    ("codebook", "recipients", "alpha", "noise"),
    [
        (Tardos(4096, 19, bytes(32)), 1000, ALPHA, 0.5),
        (Nuida(4096, 4, bytes(32)), 1000, ALPHA, 0.5),
        (FairSigns(4096 + 8), 1000, ALPHA, 0.5),
        (FairSigns(4096), 1_000_001, ALPHA, 0.5),
        (FairSigns(4096), 1000, ALPHA / 1e4, 0.5),
        (FairSigns(4096), 1000, ALPHA, 65.0),
        (FairSigns(4096), 1000, ALPHA, np.inf),
    ],
)
def test_other_codes_are_simulated(simulated, codebook, recipients, alpha, noise):
    assert certify(codebook, recipients, alpha, noise).method == "simulated"
    assert simulated == [(codebook, recipients, alpha, noise)]
