"""A run's report and the lines at its end: what was found, what it is worth, what was left out and
why.
"""

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.ensembles.card import Thresholds
from ray_app.errors import ConfigError, InputError, Status
from ray_app.images import BatchLimits
from ray_app.reports import render_run_report, summary_lines
from ray_app.reports.html import file_link
from ray_app.reports.run import (
    describe_guarantee,
    false_flags,
    flag_lines,
    measured_rate,
    name_feature,
    share_right,
)
from ray_app.runs import row_schema, summarise
from ray_app.storage.errors import make_too_large_error
from tests.make.page_reader import PageReader, contrast, read
from tests.reports.example import example_summary, thumbnail
from tests.reports.pages import page_of

GB = 10**9


def thresholds(**changes):
    stated = {
        "false_positive_rate": 0.01,
        "true_positive_rate": 0.8,
        "n_real": 1500,
        "n_fake": 1500,
    }
    return Thresholds(real_below=-1, fake_above=2, **(stated | changes))


def words_of(**changes):
    return PageReader(render_run_report(example_summary(**changes))).text


@pytest.fixture(scope="module")
def words():
    return words_of()


def test_prior_must_be_a_fraction():
    for prior in (0, 1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="prior"):
            false_flags(thresholds(), scored=1, raised=1, prior=prior)


def test_no_rate_and_no_interval_is_invented():
    assert false_flags(thresholds(false_positive_rate=None), scored=10, raised=1) is None
    assert false_flags(thresholds(true_positive_rate=None), scored=10, raised=1).shares == ()
    flags = false_flags(thresholds(n_real=None, n_fake=None), scored=100, raised=1)
    assert not flags.has_interval
    assert flags.expected.low == flags.expected.value == flags.expected.high
    assert share_right(0.5, 0.0, 0.0) is None


def test_upper_bound_on_the_card_widens_the_interval():
    plain = false_flags(thresholds(), scored=1000, raised=9, prior=0.01)
    wider = false_flags(thresholds(upper_bound=0.1), scored=1000, raised=9, prior=0.01)
    assert wider.expected.high == pytest.approx(100)
    assert wider.expected.high > plain.expected.high
    assert wider.expected.low == plain.expected.low
    assert wider.shares[0].right_low < plain.shares[0].right_low


def test_flags_within_the_expected_rate_are_explained_by_it():
    assert not false_flags(thresholds(), scored=2990, raised=150).is_explained_by_rate
    assert false_flags(thresholds(), scored=2990, raised=31).is_explained_by_rate


@given(st.floats(0.001, 0.999), st.floats(0.01, 1), st.floats(0.0001, 1), st.integers(1, 10**7))
def test_intervals_hold_what_they_are_of(prior, found, wrong, n):
    rate = measured_rate(wrong, n)
    assert 0 <= rate.low <= wrong <= rate.high <= 1
    stated = thresholds(true_positive_rate=found, false_positive_rate=wrong, n_real=50, n_fake=50)
    (share,) = false_flags(stated, scored=1, raised=0, prior=prior).shares
    assert share.right_low <= share.right <= share.right_high


def test_page_shows_what_flags_are_worth(words):
    for said in (
        "If every one of the 2,990 scored images were real, about 30 would still be flagged (17 to 49). 150 were flagged.",
        *("0.1 % 32 0.6 7.4 %", "1 % 54 6 44.7 %", "10 % 266 60 89.9 %"),
        "flags about 1 % of real images and finds",
        "held-out scenes, decoders and cameras of the demonstration set",
    ):
        assert said in words
    given = PageReader(render_run_report(example_summary(), prior=0.02)).text
    assert "If 2 % of the archive is fake, 62.0 % of the flags are right" in given
    assert "44.7 %" not in given
    first, *shares = flag_lines(example_summary(), prior=0.01)
    assert first.startswith("flagged: ")
    assert [share.startswith("if 1 % of the archive is fake, ") for share in shares] == [True]


def test_thresholds_without_rates_are_said_to_have_none():
    ensemble = example_summary()["ensemble"]
    rates = {"false_positive_rate": None, "n_real": None}
    cuts = {"real_below": -1.0, "fake_above": 2.0}
    bare = words_of(ensemble=ensemble | {"thresholds": cuts | rates})
    assert "Not known. The thresholds have no measured false-positive rate" in bare
    assert "would still be flagged" not in bare
    assert "has no measured error rates" in bare
    assert "There are no thresholds" in words_of(ensemble=ensemble | {"thresholds": None})


def summary_with_refusals(refused):
    identity = {"limits": BatchLimits().model_dump(mode="json")}
    sizes = {"process_bytes": GB, "decode_bytes": 4 * GB, "file_bytes": GB, "total_bytes": 7 * GB}
    memory = {"memory": sizes | {"processes": 2}, "peak_worker_bytes": GB}
    session = example_summary()["session"] | memory
    return example_summary(refused_by_limits=refused, identity=identity, session=session)


def test_limits_that_refuse_over_1_percent_are_announced():
    refused = {"max_pixels": 25, "max_bytes": 4, "decode_bytes": 3}
    summary = summary_with_refusals(refused | {"container_limits.max_ratio": 2})
    text = "\n".join(summary_lines(summary))
    for said in (
        "\nLIMITS REFUSED 1.1 % OF THE ARCHIVE, 34 FILES",
        "max_pixels (250,000,000): 25 files with more pixels; --set limits.max_pixels=500000000",
        "max_bytes (536,870,912): 4 files with more bytes; --set limits.max_bytes=1073741824",
        "decode_bytes (4.0 GB of a node): 3 files would have taken more memory",
        "--retry image_too_large --set cluster.decode_bytes=8000000000",
        "container_limits.max_ratio: 2 files; --set container_limits.max_ratio=… raises it",
        "memory: at most 1.0 GB in one worker of at most 7.0 GB on a node",
    ):
        assert said in text
    page = render_run_report(summary)
    assert "Limits refused 1.1 % of the archive, 34 files" in page
    assert "--set limits.max_pixels=500000000" in page
    unknown = summary_with_refusals(refused)
    del unknown["session"]["memory"]
    text = "\n".join(summary_lines(unknown))
    assert "decode_bytes (of a node): 3 files" in text
    assert "--set cluster.decode_bytes=…" in text
    one_percent = summary_with_refusals({"max_pixels": 30})
    assert not [line for line in summary_lines(one_percent) if "LIMITS" in line]
    assert "imits refused" not in render_run_report(one_percent)


def test_summary_counts_refusals_by_their_limit():
    limits, size = BatchLimits(), 2**30
    rows = [
        {"status": Status.CORRUPT_IMAGE.value, "detail": "over max_pixels, says a hostile file"},
        {"status": "ok", "detail": None},
    ]
    for check, sizes in (
        (limits.check_size, (20_000, 20_000, GB, "JPEG")),
        (limits.check_size, (12_000, 12_000, GB, "PNG")),
        (limits.check_size, (70_000, 1000, GB)),
        (limits.check_size, (65_000, 600, GB)),
        (limits.check_size, (8000, 8000, 9)),
        (limits.check_bytes, (size,)),
    ):
        with pytest.raises(InputError) as caught:
            check(*sizes)
        rows.append({"status": caught.value.status.value, "detail": caught.value.detail})
    refusal = make_too_large_error(size, 2**29)
    rows.append({"status": refusal.status.value, "detail": refusal.detail})
    schema = pa.schema([field.with_nullable(True) for field in row_schema([])])
    empty = dict.fromkeys(schema.names)
    table = pa.Table.from_pylist([empty | row for row in rows], schema=schema)
    once = ("max_pixels", "max_whole_pixels", "max_side", "max_aspect", "max_ratio")
    assert summarise([table], []).refused_by_limits == {"max_bytes": 2} | dict.fromkeys(once, 1)


def test_page_shows_counts_reasons_and_statuses(words):
    for said in (
        "3,000 files: 150 flagged as fake, 40 left open, 2,800 with no evidence found, 10 could not be scored.",
        "150 5.0 %",
        "the score is between the two thresholds 38 95.0 %",
        "JPEG 2,741 91.4 %",
        "20000 × 20000 pixels = 400 megapixels",
        "Every file has exactly one row: 3,000 of 3,000.",
        *(Status(one).meaning for one in example_summary()["statuses"]),
    ):
        assert said in words


def test_last_days_of_a_followed_run_are_shown():
    days = {
        f"2026-10-{day:02}": {"files": 20_000 + day, "ok": 20_000, "fake": 3, "real": 19_990}
        for day in range(1, 32)
    }
    last = {"2026-11-01": {"files": 2, "corrupt_image": 2}}
    summary = example_summary(days=days | last)
    page = PageReader(render_run_report(summary)).text
    assert "2026-10-31 20,031 3 0 31" in page
    assert "2026-11-01 2 0 0 2" in page
    assert "2026-10-01" not in page, "30 days"
    by_day = "2026-10-30 20,030 files, 3 flagged; 2026-10-31 20,031 files, 3 flagged; 2026-11-01 2"
    assert f"by day: {by_day} files, 0 flagged" in summary_lines(summary)
    assert "Files by day of scoring" not in words_of(days=last)


def test_page_has_a_banner_for_demonstration_detectors(words):
    assert (
        "Demonstration detector : it shows that the machinery works and is not for decisions"
        in words
    )
    assert "Probability not calibrated : it is the plain sigmoid of the score." in words
    calm = words_of(
        ensemble=example_summary()["ensemble"]
        | {"demonstration": False, "calibrated": True, "members": []}
    )
    assert "Demonstration detector" not in calm
    assert "calibrated" not in calm


def test_unfinished_run_and_broken_count_are_announced():
    unfinished = words_of(complete=False, members=9000)
    assert "Not finished. 3,000 of 9,000 files have a row." in unfinished
    assert "not reached yet 6,000 66.7 %" in unfinished
    assert "Rows and files differ." in words_of(members=2999)


def test_null_and_absent_keys_give_the_same_page():
    assert render_run_report(dict.fromkeys(example_summary())) == render_run_report({})


def test_highest_scores_are_listed_with_their_container(words):
    assert "s3://picture-desk/harbour/boxes/box-11.tar › box-11/plates/" in words.replace("/ ", "/")
    assert "+7.69 0.9995 flagged as fake" in words
    assert "+5.61 0.9964 left open" in words
    local = example_summary(top=[{**example_summary()["top"][0], "uri": "/archive/a b.jpg"}])
    assert '<a href="file:///archive/a%20b.jpg" rel="noreferrer">' in render_run_report(local)


def test_page_shows_given_pictures_that_are_jpegs():
    plain = render_run_report(example_summary())
    assert "<img" not in plain
    assert "No preview" not in plain
    given = {1001: thumbnail(), 1002: b"<svg onload=alert(1)>", 1003: "the file is <b>gone</b>"}
    page = PageReader(render_run_report(example_summary(), thumbnails=given))
    (image,) = page.attributes("img")
    assert image["src"].startswith("data:image/jpeg;base64,/9j/")
    assert page.text.count("No preview") == 2
    assert "the file is <b>gone</b>" in page.text


@pytest.mark.parametrize(
    ("uri", "member", "target"),
    [
        ("/photos/a b/ä.jpg", None, "file:///photos/a%20b/%C3%A4.jpg"),
        ("file:///photos/%FF.jpg", None, "file:///photos/%FF.jpg"),
        ("https://example.org/a b.jpg", None, "https://example.org/a%20b.jpg"),
        ("/photos/box.tar", "a.jpg", None),
        ("s3://bucket/a.jpg", None, None),
        ("http://example.org/a.jpg", None, None),
        ("https://example.org/a.jpg?token=x", None, None),
        ("https://user:word@example.org/a.jpg", None, None),
        ("//server/share/a.jpg", None, None),
        ("/photos/a\n.jpg", None, None),
        ("javascript:alert(1)", None, None),
        ("/photos/\ud800.jpg", None, None),
    ],
)
def test_links_lead_to_files_and_plain_urls_alone(uri, member, target):
    assert file_link(uri, member) == target


@pytest.mark.parametrize("block", [0, 1], ids=["light", "dark"])
def test_text_and_bars_have_contrast(block):
    page = page_of("run", "empty")
    sheet = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[block]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", sheet))
    pairs = "ink paper, muted paper, ink raised, notice-ink notice, ink band"
    for text, behind in (pair.split() for pair in pairs.split(", ")):
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for mark in ("fake", "real", "none", "plain", "strong"):
        assert contrast(colours[mark], colours["paper"]) >= 2.8, mark


def test_cost_and_turns_are_shown_if_there_are_any(words):
    session = example_summary()["session"] | {"cost": {"compute": 3.0, "egress": 0.2, "total": 3.2}}
    session["groups"] = [["large-one"], ["small", "other"]]
    session["seconds"] = {"list": 9.0, "load": 2.0, "score": 38.0}
    lines = summary_lines(example_summary(session=session))
    assert (
        "turns: 2 groups of detectors took turns in each worker, 5.0 % of the time to load them: "
        "large-one | small, other"
    ) in lines
    assert "cost: 3.20 at the configured prices: machines 3.00, egress 0.20" in lines
    assert "cost, at the configured prices 3.20" in words_of(session=session)
    assert "cost, at the configured prices" not in words


@pytest.mark.parametrize(
    ("upper_bound", "known"),
    [
        (0.0098, "at most 1 % are called fake (guaranteed,"),
        (0.01, "at most 1 % are called fake (guaranteed,"),
        (0.023, "at most 2.3 % are called fake (measured, not under the stated 1 %,"),
    ],
)
def test_rate_is_guaranteed_only_if_its_bound_keeps_it(upper_bound, known):
    said = describe_guarantee(0.01, upper_bound, 0.95, None)
    assert said == f"of real images {known} with 95 % confidence)"


def test_properties_of_an_archive_have_names():
    names = {"score:corvi2023": "score of corvi2023", "score": "score", "unheard_of": "unheard_of"}
    assert {name: name_feature(name) for name in names} == names


def test_findings_are_counted_only_beyond_the_verdicts():
    summary = example_summary() | {"findings": {"flagged by detectors": 150, "left open": 40}}
    assert "Findings: the strongest" not in read(render_run_report(summary)).text
    assert not any(line.startswith("findings") for line in summary_lines(summary))
    summary["findings"]["says that ComfyUI made it"] = 1
    assert "Findings: the strongest" in read(render_run_report(summary)).text
    lines = summary_lines(summary)
    [line] = [line for line in lines if line.startswith("findings")]
    assert "says that ComfyUI made it 1" in line
    assert not any(line.startswith("verdicts") for line in lines)
