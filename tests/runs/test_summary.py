"""What files declare of themselves, counted against the verdicts."""

import pyarrow as pa

from ray_app.images.provenance import ContentCredentials, Generator, Provenance
from ray_app.images.provenance.statement import NO_TRUST_LIST
from ray_app.reports import summary_lines
from ray_app.reports.run import render_run_report
from ray_app.runs.summary import declarations

HOSTILE = '"ai_declared":true} "c2pa":{"state":"trusted" \\"ai_declared\\":true}'
MADE = Provenance.from_statements(generator=Generator(tool=HOSTILE)).row()
TRUSTED = Provenance.from_statements(
    c2pa=ContentCredentials(state="trusted", ai_generated=True)
).row()
BROKEN = Provenance.from_statements(
    c2pa=ContentCredentials(state="invalid", ai_generated=True)
).row()
CAMERA = Provenance.from_statements(software=HOSTILE).row()
ROWS = [
    (MADE, "fake"),
    (TRUSTED, "real"),
    (BROKEN, "fake"),
    (CAMERA, "real"),
    (None, "abstain"),
    (MADE, None),
    (None, None),
]


def counted(rows):
    said, verdicts = zip(*rows, strict=True) if rows else ((), ())
    table = pa.table(
        {
            "provenance": pa.array(said, pa.string()),
            "verdict": pa.array(verdicts, pa.string()).dictionary_encode(),
        }
    )
    return declarations(table).to_dict()


def test_declarations_are_counted_per_verdict():
    assert counted(ROWS) == {
        "stated": 5,
        "declared": {"fake": 1, "real": 1, "none": 1},
        "undeclared": {"fake": 1, "real": 1, "abstain": 1, "none": 1},
        "c2pa": {"trusted": 1, "invalid": 1},
        "signers": {"on the trust list": 1},  # of an earlier row, which names no list
    }
    assert counted([]) == {"stated": 0, "declared": {}, "undeclared": {}, "c2pa": {}, "signers": {}}


def test_signers_are_counted_by_the_lists_that_were_asked():
    a, b = "C2PA trust list of 2026-11-26 (sha256 75)", "interim trust list (sha256 e0+2f)"
    asked = [
        ("trusted", (b,)),
        ("intact", (a, b)),
        ("intact", ()),
        ("trusted", (b,)),
        ("invalid", ()),
    ]
    made = {"ai_generated": False, "signer": HOSTILE}
    said = [
        Provenance.from_statements(
            c2pa=ContentCredentials(state=state, trust_lists=lists, **made)
        ).row()
        for state, lists in asked
    ]
    signers = {f"on the {b}": 2, f"not on the {a}, nor on the {b}": 1, NO_TRUST_LIST: 1}
    found = counted([(row, "real") for row in said])
    assert found["signers"] == signers
    summary = {"members": 5, "statuses": {"ok": 5}, "verdicts": {"real": 5}, "provenance": found}
    assert f"C2PA: 2 signers on the {b}" in summary_lines(summary)
    assert "touchstone config trust update" in render_run_report(summary)


def test_summary_and_report_show_declarations():
    summary = {
        "members": 7,
        "statuses": {"ok": 5, "corrupt_image": 2},
        "verdicts": {"fake": 2, "real": 2, "abstain": 1},
    }
    wanted = "declarations: 3 files declare themselves AI-generated: 1 flagged as fake, 1 no evidence found, 1 without a verdict"
    assert wanted in summary_lines(summary | {"provenance": counted(ROWS)})
    assert not [line for line in summary_lines(summary) if "declare" in line]
    page = render_run_report(summary | {"provenance": counted(ROWS)})
    assert (
        "5 of 7 files have metadata on their origin; 3 files declare that a model generated them"
        in page
    )
    assert "h-origin" not in render_run_report(summary)
