"""The folder of a stranger's module `strange`, which is the text MODULE of the test module."""

import pytest


@pytest.fixture(autouse=True)
def own_place(request, tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config" / "config.yaml"))
    if hasattr(request.module, "MODULE"):
        (tmp_path / "strange.py").write_text(request.module.MODULE)
    return tmp_path


@pytest.fixture
def same_last_bits(monkeypatch):
    """One thread and no network, as in the process of the other package."""
    monkeypatch.setenv("TOUCHSTONE_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
