"""Fills the tables of the results pages from the JSON that the benchmarks wrote.

    python -m examples.results

In a page in `docs/results`, the lines between `<!-- results: NAME TABLE ... -->` and `<!-- end of results -->` come
from `docs/results/data/NAME.json`: the tables that are named, or all of them. `<!-- results: * -->` lists all runs.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from examples._common.results import ROOT, TRANSCRIBED, Results, Table


PAGES = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- results: (\S+)((?: \S+)*) -->\n).*?(<!-- end of results -->)", re.S)
ALL = "*"
NO_BREAK = "\N{NO-BREAK SPACE}"


def load(folder: Path) -> dict[str, Results]:
    """Returns the results in a folder by the names of their files."""
    return {file.stem: Results.read(file) for file in sorted(folder.glob("*.json"))}


def fill(page: str, results: Mapping[str, Results]) -> str:
    """Returns a page with its tables replaced by those of the results."""

    def block(found: re.Match[str]) -> str:
        start, name, chosen, end = found.groups()
        text = table_of_runs(results).markdown() if name == ALL else tables_of(results[name], chosen.split())
        return f"{start}\n{text}\n\n{end}"

    return BLOCK.sub(block, page)


def tables_of(results: Results, chosen: list[str]) -> str:
    """Returns the chosen tables, or all, and the line that says where they come from."""
    by_name = {table.name: table for table in results.tables}
    shown = [keep_pairs(by_name[name]).markdown() for name in chosen or by_name]
    return "\n\n".join([*shown, f"*{origin(results)}*"])


def keep_pairs(table: Table) -> Table:
    """Returns the table with lines broken after slashes only in cells of figures, `92, 245 / 88, 105`."""

    def kept(cell: str) -> str:
        if not re.match(r"(\d|-).* / ", cell):
            return cell
        return cell.replace(", ", f",{NO_BREAK}").replace(" / ", f"{NO_BREAK}/ ")

    return replace(table, rows=tuple(tuple(map(kept, row)) for row in table.rows))


def origin(results: Results) -> str:
    """Returns what ran where and when, or that the figures are transcribed."""
    where = f"commit {results.commit}, {results.date}, {results.machine}"
    if results.source == TRANSCRIBED:
        return f"Transcribed from an earlier README ({where}), and not run again since: `{results.benchmark}`."
    return f"A run of `{results.benchmark}` ({where})."


def table_of_runs(results: Mapping[str, Results]) -> Table:
    """Returns the table of all runs."""
    rows = (
        (f"[{name}](data/{name}.json)", f"`{each.benchmark}`", f"{each.source} {each.date}", each.commit, each.machine)
        for name, each in results.items()
    )
    return Table("runs", "", ("results", "command", "source", "commit", "machine"), tuple(rows))


def main() -> None:
    """Fills all pages."""
    results = load(PAGES / "data")
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(fill(page.read_text(), results))


if __name__ == "__main__":
    main()
