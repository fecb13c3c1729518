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
@click.option("--sign", "key", metavar="KEY", type=click.Path(path_type=Path), help="Sign the record with this Ed25519 private key (PEM).")
@click.option("--signer", metavar="KEY", type=click.Path(path_type=Path), help="With --verify: the public key of who must have signed it.")
@click.option("--device", default="cpu", show_default=True, help="With --image: cpu, cuda or cuda:0.")
@licence_option
@as_json
def evidence(
    run: str | None,
    image: str | None,
    out: str | None,
    record: Path | None,
    file: Path | None,
    key: Path | None,
    signer: Path | None,
    device: str,
    accepted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Write the record of one IMAGE of RUN: hashes, cards, scores, threshold and its guarantee, provenance, limits. Or check one.

    IMAGE is an image_id, a uri (CONTAINER › MEMBER inside one), a path, or a copy of the file.
    --verify exits with 3 where something differs or is not signed by --signer, with 4 where weights are missing. It lists what it did
    not verify.

    \b
    touchstone evidence run photos/cat.jpg --out evidence --sign key.pem
    touchstone evidence --verify evidence/evidence.json
    touchstone evidence --verify evidence/evidence.json --image cat.jpg --signer public.pem
    """
    _check_usage(run, image, out, record, file, key, signer)
    if record is not None:
        return _verify(record, file, signer, device, accepted, as_json)
    assert run is not None
    assert image is not None
    assert out is not None
    return _make(run, image, out, key, as_json)


def _check_usage(
    run: str | None, image: str | None, out: str | None, record: Path | None, file: Path | None, key: Path | None, signer: Path | None
) -> None:
    usage = "touchstone evidence RUN IMAGE --out DIR [--sign KEY], or touchstone evidence --verify FILE [--image PATH] [--signer KEY]"
    for word in (run, image):
        if word is not None and word.startswith("-") and not word[1:].isdigit():
            raise ConfigError(f"no such option: {word}", hint=usage)
    if record is None and (run is None or image is None or out is None or file is not None or signer is not None):
        raise ConfigError("evidence needs RUN, IMAGE and --out; --image and --signer belong to --verify", hint=usage)
    if record is not None and (run is not None or out is not None or key is not None):
        raise ConfigError("--verify takes a record alone, neither RUN nor --out nor --sign", hint=usage)


def _make(run: str, image: str, out: str, key: Path | None, as_json: bool) -> int:
    from ray_app.evidence.canonical import written
    from ray_app.evidence.record import make_evidence
    from ray_app.evidence.signing import signed
    from ray_app.reports.evidence_report import evidence_lines, render_evidence

    folder = local_folder(out)
    told = make_evidence(run, image)
    told = told if key is None else signed(told, key)
    text = written(told)
    page = render_evidence(told)
    (folder / "evidence.json").write_text(text, encoding="utf-8")
    (folder / "evidence.html").write_text(page, encoding="utf-8")
    click.echo(text if as_json else "\n".join(evidence_lines(told)))
    click.echo(f"record: {folder / 'evidence.json'}\npage: {folder / 'evidence.html'}", err=as_json)
    return ExitCode.DONE


def _verify(record: Path, file: Path | None, signer: Path | None, device: str, accepted: tuple[str, ...], as_json: bool) -> int:
    from ray_app.evidence.record import read_evidence
    from ray_app.evidence.unverified import not_verified
    from ray_app.evidence.verifying import verify_evidence
    from ray_app.reports.evidence_report import check_line

    checks: list[Check] = []
    told = read_evidence(record)
    for check in verify_evidence(told, file, signer=signer, device=device, accepted=accepted):
        checks.append(check)
        if not as_json:
            click.echo(check_line(*check))
    differ = [check.name for check in checks if check.outcome == "differs"]
    rest = not_verified(told, checks, image=file is not None, signer=signer is not None)
    if as_json:
        answer = {"agrees": not differ, "checks": [one._asdict() for one in checks], "not_verified": [one._asdict() for one in rest]}
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        for one in rest:
            click.echo(check_line(f"not verified: {', '.join(one.fields)}", "not checked", one.why))
        click.echo(f"differs: {', '.join(differ)}" if differ else "nothing differs")
    return ExitCode.TOO_MANY_BAD if differ else ExitCode.DONE
