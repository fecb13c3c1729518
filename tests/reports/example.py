"""A summary as the engine writes it, with figures that look like an archive's."""

import io
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

DOCUMENTS = Path(__file__).with_name("documents")
_SUMMARY = yaml.safe_load((DOCUMENTS / "run_summary.yaml").read_text(encoding="utf-8"))


def example_summary(**changes: Any) -> dict[str, Any]:
    return {**_SUMMARY, **changes}


def thumbnail() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(data, "JPEG")
    return data.getvalue()
