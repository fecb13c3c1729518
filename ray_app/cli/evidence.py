"""`touchstone evidence`: one image's record of what was decided on which grounds, and the check of such a record."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_app.cli.options import as_json, licence_option, local_folder
from ray_app.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from ray_app.evidence.checks import Check


@click.command(context_settings={"ignore_unknown_options": True})  # an image_id may be negative
@click.argument("run", metavar="[RUN", required=False)
@click.argument("image", metavar="IMAGE]", required=False)
@click.option("--out", metavar="DIR", help="Local folder for evidence.json and evidence.html.")
@click.option("--verify", "record", metavar="FILE", type=click.Path(path_type=Path), help="Check a record instead: an evidence.json.")
@click.option("--image", "file", metavar="PATH", type=click.Path(path_type=Path), help="With --verify: the image, to hash and score again.")
@click.option("--device", default="cpu", show_default=True, help="With --image: cpu, cuda or cuda:0.")
@licence_option
@as_json
def evidence(
    run: str | None,
    image: str | None,
    out: str | None,
    record: Path | None,
    file: Path | None,
    device: str,
    accepted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Write the record of one IMAGE of RUN: hashes, cards, scores, threshold and its guarantee, provenance, limits. Or check one.

    IMAGE is an image_id, a uri (CONTAINER › MEMBER inside one), a path, or a copy of the file.
    --verify exits with 3 where something differs, with 4 where weights are missing.

    \b
    touchstone evidence run photos/cat.jpg --out evidence
    touchstone evidence --verify evidence/evidence.json
    touchstone evidence --verify evidence/evidence.json --image cat.jpg
    """
    _check_usage(run, image, out, record, file)
    if record is not None:
        return _verify(record, file, device, accepted, as_json)
    assert run is not None
    assert image is not None
    assert out is not None
    return _make(run, image, out, as_json)


def _check_usage(run: str | None, image: str | None, out: str | None, record: Path | None, file: Path | None) -> None:
    usage = "touchstone evidence RUN IMAGE --out DIR, or touchstone evidence --verify FILE [--image PATH]"
    for word in (run, image):
        if word is not None and word.startswith("-") and not word[1:].isdigit():
            raise ConfigError(f"no such option: {word}", hint=usage)
    if record is None and (run is None or image is None or out is None or file is not None):
        raise ConfigError("evidence needs RUN, IMAGE and --out, and --image belongs to --verify", hint=usage)
    if record is not None and (run is not None or out is not None):
        raise ConfigError("--verify takes a record alone, neither RUN nor --out", hint=usage)


def _make(run: str, image: str, out: str, as_json: bool) -> int:
    from ray_app.evidence.record import make_evidence
    from ray_app.reports.evidence_report import evidence_lines, render_evidence

    folder = local_folder(out)
    told = make_evidence(run, image)
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
    page = render_evidence(told)
    (folder / "evidence.json").write_text(text, encoding="utf-8")
    (folder / "evidence.html").write_text(page, encoding="utf-8")
    click.echo(text if as_json else "\n".join(evidence_lines(told)))
    click.echo(f"record: {folder / 'evidence.json'}\npage: {folder / 'evidence.html'}", err=as_json)
    return ExitCode.DONE


def _verify(record: Path, file: Path | None, device: str, accepted: tuple[str, ...], as_json: bool) -> int:
    from ray_app.evidence.record import read_evidence
    from ray_app.evidence.verifying import verify_evidence
    from ray_app.reports.evidence_report import check_line

    checks: list[Check] = []
    for check in verify_evidence(read_evidence(record), file, device=device, accepted=accepted):
        checks.append(check)
        if not as_json:
            click.echo(check_line(*check))
    differ = [check.name for check in checks if check.outcome == "differs"]
    if as_json:
        click.echo(json.dumps({"agrees": not differ, "checks": [check._asdict() for check in checks]}, indent=2, ensure_ascii=False))
    else:
        click.echo(f"differs: {', '.join(differ)}" if differ else "nothing differs")
    return ExitCode.TOO_MANY_BAD if differ else ExitCode.DONE
