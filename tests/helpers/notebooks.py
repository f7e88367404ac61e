"""Executes the notebooks of docs/. `python -m tests.helpers.notebooks` writes their outputs anew."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.helpers.processes import ROOT, environment


FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Returns a notebook with fresh outputs, executed in an empty folder, whose place is left out of them.

    Raises:
        `CellExecutionError`: if a cell raises an error.
    """
    read = nbformat.read(notebook, as_version=4)
    for cell in read.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(read, timeout=300, kernel_name="python3", resources=place, record_timing=False)
    client.execute(env=environment(DS_ACCELERATOR="cpu"))
    read.metadata = {"kernelspec": read.metadata.kernelspec, "language_info": {"name": "python"}}
    return nbformat.reads(nbformat.writes(read).replace(f"{folder}/", ""), as_version=4)


def outputs_of(notebook: nbformat.NotebookNode) -> list[str]:
    """Returns the outputs of a notebook's cells as text, each in all its forms."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [str(output) for cell in cells for output in cell.outputs]


if __name__ == "__main__":
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as empty:
            nbformat.write(execute(path, Path(empty)), path)
