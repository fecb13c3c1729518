"""A desk at noon: some pictures and a folder, a signed picture, the record of one for the file, and
an audit of the whole folder.
"""

import csv
import hashlib
import json

import pytest

from tests.make.provenance.signing import authority, signed

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

RESULTS, TRUST = "docs/results.md", "docs/trust.md"
LISTS = ("official", "time-stamps", "interim", "interim-signers")


def test_pictures_are_checked_recorded_and_audited(with_sample, truth):
    desk = with_sample
    help_of_check = desk.asks("touchstone check --help")
    some = desk.types(
        "README.md", "touchstone check demo-run/archive/desk/*.jpg", {"demo-run/": ""}
    )
    jpegs = [path for path in (desk.folder / "archive" / "desk").glob("*.jpg")]
    assert [path.name for path in jpegs if path.name not in some.stdout] == []
    all_of_them = desk.types("docs/index.md", "touchstone check --html", {"photos/": "archive"})
    assert "86 files: " in all_of_them.stdout
    page = (desk.folder / "verdicts.html").read_text()
    assert [path for path in truth if path.rpartition("/")[2] not in page] == []
    assert 'src="http' not in page

    (desk.folder / "signed.jpg").write_bytes(signed())
    checked = (help_of_check, "touchstone check photo.jpg", {"photo.jpg": "signed.jpg"})
    unknown = desk.types(*checked).stdout
    assert "touchstone config trust update" in unknown
    (desk.folder / "list.pem").write_text(authority().root)
    given = " --address ".join(f"{name}=list.pem" for name in LISTS)
    address = {"official=https://mirror.example.org/C2PA-TRUST-LIST.pem": given}
    trusted = desk.types("docs/provenance.md", "touchstone config trust update --address", address)
    assert trusted.stdout.count("certificates") == len(LISTS)
    assert "made by AI, signed by" in (known := desk.types(*checked).stdout)
    assert "signer on the C2PA trust list of" in known

    desk.types("docs/index.md", "touchstone score --out", {"archive/": "archive", "my-run": "run"})
    picture = next(path for path in truth if path.endswith(".jpg"))
    names = {"archive/photo.jpg": f"archive/{picture}"}
    desk.types(RESULTS, "touchstone results run --image --json", names)
    record = json.loads((desk.folder / "photo.json").read_text())
    assert (
        record["row"]["sha256"]
        == hashlib.sha256((desk.folder / "archive" / picture).read_bytes()).hexdigest()
    )
    assert list(record["digests"]["detectors"]) == list(record["row"]["scores"])
    desk.types(RESULTS, "touchstone check --html photo.html", names)
    assert picture.rpartition("/")[2] in (desk.folder / "photo.html").read_text()

    drawn = desk.types(
        TRUST, "touchstone runs audit --draw --out audit", {"archive-run": "run", "300": "60"}
    )
    labels = desk.folder / "audit" / "sample.csv"
    with labels.open(newline="") as sample:
        rows = list(csv.DictReader(sample))
    with labels.open("w", newline="") as sample:
        table = csv.DictWriter(sample, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow(row | {"label": truth[row["uri"].partition("/archive/")[2]][0]})
    told = desk.types(drawn, "touchstone runs audit --labels")
    assert "drawn: 60 of 83 images" in drawn.stdout
    assert "prevalence: fraction of fakes" in told.stdout
