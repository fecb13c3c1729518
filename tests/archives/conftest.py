from tests.storage.conftest import faulty

__all__ = ["faulty"]
