"""The notebooks of the documentation, run as they stand, in an empty folder."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def outputs(cell):
    """What a cell of code shows, as text and as HTML."""
    return "\n".join(
        str(one.get("text") or "\n".join(one["data"].values())) for one in cell.get("outputs", ())
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute(env=environment)
    shown = "\n".join(map(outputs, notebook.cells))
    for expected in (
        "data:image/jpeg;base64,",
        "flagged as fake",
        "verdict",
        "fake",
        "unsupported_format",
    ):
        assert expected in shown, expected
