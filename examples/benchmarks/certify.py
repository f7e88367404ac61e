"""Simulates which coalitions the default codes withstand, and writes the table that registration looks up.

    python -m examples.benchmarks.certify

It takes a quarter of an hour on two cores. Its lengths, noises and recipients are those that a base can have; other
codes are simulated when a base is registered. See `hf_fingerprint/codes/certified.py`.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import hf_fingerprint.codes
from hf_fingerprint.codes import coalition_by_simulation, make_codebook
from hf_fingerprint.codes.certified import ALPHA, TABLE, code_name
from hf_fingerprint.codes.design import LENGTHS


CODES = ("tardos", 20), ("nuida", 20), ("fair_signs", 2)
NOISES = [round(2 ** (step / 4), 4) for step in range(-20, 25)]
RECIPIENTS = [100, 1000, 10_000, 1_000_000]
TRIALS = 3
SECRET = hashlib.sha256(b"the secret of simulated codes").digest()


def certified_sizes(case: tuple[str, int, int, int]) -> list[int]:
    """The sizes by noise for `(family, coalition, length, recipients)`; none is larger than at less noise."""
    family, coalition, length, recipients = case
    codebook, found, most = make_codebook(family, length, coalition, SECRET), [], 64
    for noise in NOISES:
        most = coalition_by_simulation(codebook, recipients, ALPHA, noise, TRIALS, most).size if most else 0
        found.append(most)
    return found


def make_table(lengths: Sequence[int]) -> dict[str, object]:
    """The table for codes of these lengths."""
    cases = [(*code, length, recipients) for length in lengths[::-1] for code in CODES for recipients in RECIPIENTS]
    codes: dict[str, dict[str, list[list[int]]]] = {}
    with ProcessPoolExecutor(2) as pool:
        for (family, coalition, length, _), sizes in zip(cases, pool.map(certified_sizes, cases), strict=True):
            name = code_name(make_codebook(family, length, coalition, SECRET))
            codes.setdefault(name, {}).setdefault(str(length), []).append(sizes)
            print(name, length, sizes, flush=True)
    return {"trials": TRIALS, "noise": NOISES, "recipients": RECIPIENTS, "codes": codes}


def main() -> None:
    """Writes the table into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(hf_fingerprint.codes.__file__).with_name(TABLE))
    options = parser.parse_args()
    options.out.write_text(json.dumps(make_table(LENGTHS), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
