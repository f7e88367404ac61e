"""The coalition that a base's code withstands, from a table of simulations where it has the code.

Simulating one code takes seconds. The default codes were simulated beforehand, at lengths that are powers of two: see
`examples/benchmarks/certify.py`. A size is looked up at the next higher noise and number of recipients of the table,
so it is that of a harder case. It is one of a code with another secret than the base's, on which it depends little.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from hf_fingerprint.codes.coalition import CertifiedCoalition, coalition_by_simulation
from hf_fingerprint.codes.codebook import Codebook


TABLE = "certified_coalitions.json"
ALPHA = 1e-6


@cache
def load_table() -> dict[str, Any]:
    """The table: `noise`, `recipients` at an alpha of 1e-6, and by code and length the sizes for each of both."""
    table: dict[str, Any] = json.loads(files("hf_fingerprint.codes").joinpath(TABLE).read_text("utf-8"))
    return table


def code_name(codebook: Codebook) -> str:
    """The name of a code in the table: its family, and the coalition that it is designed for if that matters."""
    coalition = getattr(codebook, "coalition", None)
    return codebook.family if coalition is None else f"{codebook.family} {coalition}"


def certify(codebook: Codebook, recipients: int, alpha: float, noise: float) -> CertifiedCoalition:
    """The largest coalition whose members are all accused, whatever their strategy.

    Args:
        codebook, recipients, alpha, noise: see [`coalition_by_simulation`], which is run for codes that are not in the
            table.
    """
    table = load_table()
    sizes = table["codes"].get(code_name(codebook), {}).get(str(codebook.length))
    row = next((i for i, most in enumerate(table["recipients"]) if recipients * ALPHA <= most * alpha), None)
    column = next((i for i, most in enumerate(table["noise"]) if noise <= most), None)
    if sizes is None or row is None or column is None:
        return coalition_by_simulation(codebook, recipients, alpha, noise)
    among, shown = table["recipients"][row], table["noise"][column]
    tried = f"{table['trials']} trials of each strategy beforehand with another secret"
    case = f"noise {shown:.2g} per position and {among:,} recipients at alpha {ALPHA:.0e}"
    method = f"simulation, {tried}, {case}, all colluders accused"
    return CertifiedCoalition(min(sizes[row][column], recipients), method)
