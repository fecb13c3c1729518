"""The picture of the README: what the benchmarks measured, as bars.

    python -m benchmarks.picture --scoring scoring.json --serving serving.json > docs/performance.svg

Each panel has one work: images per second of ours and of its peers, the hardware's limit where
there is one.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, ROW, LEFT, RIGHT = 760, 22, 250, 70
OURS = ("touchstone", "server", "ray")
WORDS = {
    "decode_bound": "touchstone score, decode-bound: images/s", "compute_bound": "touchstone score, a ViT-S of 15 GMAC: images/s",
    "tiny": "touchstone serve, a small network: images/s", "heavy": "touchstone serve, the ViT-S: images/s",
    "limit": "the hardware's limit", "touchstone": "touchstone score", "dataloader_tuned": "tuned DataLoader script",
    "dataloader_plain_bf16": "the script that people write", "dataloader_plain_fp32": "the same in fp32",
    "ray_guide": "Ray Data's guide", "daft_guide": "Daft, our decoder in its UDF",
    "server": "touchstone serve", "server_two_workers": "touchstone serve --workers 2", "ray": "touchstone serve --ray",
    "ray_two": "the same, two replicas", "litserve": "LitServe, one worker", "litserve_two_workers": "LitServe, two workers",
    "fastapi": "FastAPI, no batches, two cores", "before": "the version before",
}  # fmt: skip


class Panel(NamedTuple):
    """One work: its title, and images per second by contender."""

    title: str
    rates: Mapping[str, float]


def panels(scoring: Mapping[str, Any] | None, serving: Mapping[str, Any] | None) -> list[Panel]:
    """What there is to show of the benchmarks' results: medians."""
    found = []
    for work, contenders in (scoring or {}).get("rates", {}).items():
        found.append(
            Panel(WORDS.get(work, work), {name: of["median"] for name, of in contenders.items()})
        )
    for model, servers in (serving or {}).get("figures", {}).items():
        found.append(
            Panel(WORDS.get(model, model), {name: of["rate"] for name, of in servers.items()})
        )
    return found


def drawing(shown: Sequence[Panel]) -> str:
    """An SVG of all panels, one below the other; readable on light and dark."""
    y, parts = 10, list[str]()
    for panel in shown:
        parts.append(f'<text x="8" y="{y + 14}" class="t">{escape(panel.title)}</text>')
        y += 24
        most = max(panel.rates.values())
        for name, rate in sorted(panel.rates.items(), key=lambda item: -item[1]):
            length = (WIDTH - LEFT - RIGHT) * rate / most
            kind = "ours" if name.startswith(OURS) else "theirs"
            parts.append(
                f'<text x="{LEFT - 8}" y="{y + 14}" class="n">{escape(WORDS.get(name, name))}</text>'
            )
            parts.append(
                f'<rect x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{ROW - 7}" class="{kind}"/>'
            )
            parts.append(
                f'<text x="{LEFT + length + 6:.1f}" y="{y + 14}" class="v">{rate:.3g}</text>'
            )
            y += ROW
        y += 12
    style = (
        "text{font:13px system-ui,sans-serif;fill:#57606a}.t{font-weight:600;fill:#3b6ea5}.n{text-anchor:end}"
        ".ours{fill:#3b6ea5}.theirs{fill:#a9b4c0}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">'
    return "\n".join(
        [
            head,
            "<title>Images per second of Touchstone and its peers</title>",
            f"<style>{style}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.picture",
        description=__doc__.partition("\n")[0] if __doc__ else None,
    )
    parser.add_argument("--scoring", type=Path, help="what benchmarks.scoring --json wrote")
    parser.add_argument("--serving", type=Path, help="what benchmarks.serving --json wrote")
    options = parser.parse_args(arguments)
    read = [
        json.loads(file.read_text()) if file else None
        for file in (options.scoring, options.serving)
    ]
    sys.stdout.write(drawing(panels(*read)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
