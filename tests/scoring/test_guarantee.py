"""Where the guarantee ends: rows of a run against what their card was calibrated on; real rows and
files, without a cluster.
"""

import json

import duckdb
import numpy as np
import pytest
import yaml

import ray_app
from ray_app.cli.main import main
from ray_app.cluster.config import ClusterConfig
from ray_app.ensembles import EnsembleCard, EnsembleMember
from ray_app.ensembles.card import Cascade, OperatingPoint
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.reports import render_run_report, summary_lines
from ray_app.runs import CurrentRows, RunDirectory, current_rows, document, verify_run
from ray_app.runs.schema import UNLIKE
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.decide import decide_run
from ray_app.scoring.gallery import make_gallery
from ray_app.scoring.guarantee import compare, count_archive
from ray_app.scoring.run import score_archive
from tests.make.cards import write_two
from tests.make.small_run import NAME, new_run, read_by_sql
from tests.scoring.made_run import DECODER, made_run, more_rows, properties_made, summary_of
from tests.scoring.shifted import calibrated_card

N = 240
POOR = {"quality": (20, 30)}  # of JPEG files, unlike those of the calibration


@pytest.fixture(scope="module")
def card():
    """A card calibrated on images such as `made_run` makes them."""
    found = calibrated_card(properties_made(1, 600), np.arange(600) % 2 == 1, detector=NAME)
    settings = found.settings.model_copy(update={"decoders": (DECODER,)})
    return found.model_copy(update={"settings": settings})


def plain_card(card):
    """The same detectors, and nothing promised."""
    return EnsembleCard(name="plain", title="Plain", members=card.members)


def rows_of(run):
    return list(current_rows(run))


def verdicts(run):
    return {row["verdict"] for row in rows_of(run)}


def guarantee_of(run, card):
    """Finish the manifests of a run; returns what its summary says of the guarantee."""
    section = summary_of(run, card).get("guarantee")
    return section and document.GuaranteeSummary.model_validate(section)


def test_guarantee_holds_for_like_images_at_any_prevalence(tmp_path, card):
    features = [one.name for one in card.population.features]
    for seed, fakes in ((2, 0.5), (3, 0.02), (4, 0.95)):
        run = made_run(tmp_path / f"run-{seed}", card, seed, N, fakes=fakes)
        found = guarantee_of(run, card)
        assert (found.holds, found.why, found.unlike) == (True, None, None), fakes
        assert [shift.feature for shift in found.shifts] == features
        assert (found.target_fpr, found.images, found.decoders, found.settings) == (0.05, N, [], [])
        assert verdicts(run) == {"real", "fake"}


def test_later_listing_is_compared_with_the_counts_before(tmp_path, card, monkeypatch):
    run = made_run(tmp_path / "run", card, 2, N)
    assert guarantee_of(run, card).images == N
    more_rows(run, card, 3, 30, decoder="another")
    [_, newer] = run.published()
    read, rows_in = [], RunDirectory.rows_in

    def noting(run, path, *more):
        read.append(path)
        return rows_in(run, path, *more)

    monkeypatch.setattr(RunDirectory, "rows_in", noting)
    found = guarantee_of(run, card)
    assert set(read) == {newer.path}, "earlier rows are not read again"
    spec = make_spec(card, limits=ImageLimits())
    assert found == compare(run, spec, count_archive(spec, CurrentRows.read(run)))
    assert found.counted.decoders == {DECODER: found.counted.decoders[DECODER], "another": 30}
    assert verify_run(run).current == N + 30


OF_THE_VERDICT = {"finding", "grounds", "verdict", "verdict_reason", "verdict_detail"}


def test_unlike_archive_abstains_as_a_whole(tmp_path, card):
    run = made_run(tmp_path / "run", card, 5, N, **POOR)
    before = {row["image_id"]: row for row in current_rows(run, unfinished=True)}
    summary = summary_of(run, card)
    found = document.GuaranteeSummary.model_validate(summary["guarantee"])
    assert found.holds is False
    assert [shift.feature for shift in found.shifts if shift.beyond] == ["jpeg_quality"]
    assert found.unlike.startswith(f"{UNLIKE}: jpeg_quality (PSI ")
    expected = ("left open", "abstain", "unlike_archive")
    for row in rows_of(run):
        assert (row["finding"], row["verdict"], row["verdict_reason"]) == expected
        assert f"{UNLIKE}: {row['verdict_detail']}" == found.unlike
        for name in row.keys() - OF_THE_VERDICT:
            assert row[name] == before[row["image_id"]][name], "scores and probabilities stay"
    tables = [table for path in run.row_files([0]) for table in run.rows_in(path)]
    files = [row for table in tables for row in table.to_pylist()]
    assert {row["image_id"]: row for row in files} == before, "files keep the ensemble's verdicts"
    assert summary["verdicts"] == {"real": 0, "fake": 0, "abstain": N}
    assert summary["findings"] == {"left open": N}
    verify_run(run)
    sentence = f"all verdicts abstain: {UNLIKE}: jpeg_quality (PSI "
    assert summary_lines(summary)[1].startswith(sentence.upper())
    page = render_run_report(summary)
    first = page[page.index('<p class="notice"') :]
    assert first.startswith('<p class="notice" role="note"><strong>A' + sentence[1:])


def read_everywhere(run, folder, capsys):
    """The verdicts and reasons of all rows, by each reader of a run."""
    url, found = run.store.url, {}

    def printed(*arguments):
        capsys.readouterr()
        assert main(["results", url, "--limit", str(N), *arguments]) == 0
        return capsys.readouterr().out

    found["--json"] = [json.loads(line) for line in printed("--json").splitlines()]
    for ending in ("csv", "parquet"):
        out = str(folder / f"rows.{ending}")
        printed("--out", out)
        rows = duckdb.sql(f"SELECT verdict, verdict_reason FROM '{out}'").to_arrow_table()
        found[ending] = rows.to_pylist()
    found["tables"] = ray_app.load_run(url).table().to_pylist()
    found["SQL"] = read_by_sql(run)
    assert len(found["tables"]) == len(found["SQL"]) == len(found["csv"]) == N
    return {
        reader: {(row["verdict"], row["verdict_reason"]) for row in rows}
        for reader, rows in found.items()
    }


def test_every_reader_marks_an_unlike_archive_unless_waived(tmp_path, card, capsys):
    unlike = made_run(tmp_path / "unlike", card, 5, N, **POOR)
    assert guarantee_of(unlike, card).unlike
    for reader, facts in read_everywhere(unlike, tmp_path, capsys).items():
        assert facts == {("abstain", "unlike_archive")}, reader
    uri = rows_of(unlike)[0]["uri"]
    for arguments, images in (((), 20), (("--image", uri), 1)):
        assert main(["results", unlike.store.url, *arguments]) == 0
        printed = capsys.readouterr()
        assert printed.out.count("left open") >= images
        assert "so different that all verdicts abstain" in printed.err
    gallery = make_gallery(unlike.store.url, str(tmp_path / "gallery"), quiet=True)
    pages = "".join(path.read_text() for path in (tmp_path / "gallery").glob("*.html"))
    assert gallery["images"] == N
    assert pages.count("left open") >= N
    assert "flagged as fake" not in pages

    waiving = {"identity": {"waive_guarantee": True}}
    waived = made_run(tmp_path / "waived", card, 5, N, **POOR, **waiving)
    assert guarantee_of(waived, card).holds is False
    for reader, facts in read_everywhere(waived, tmp_path, capsys).items():
        assert {reason for _, reason in facts} == {None}, reader
    assert verdicts(waived) == {"real", "fake"}


def test_verdicts_return_when_later_listings_are_like(tmp_path, card):
    run = made_run(tmp_path / "run", card, 7, 24, **POOR)
    assert guarantee_of(run, card).unlike
    more_rows(run, card, 8, 1200)
    assert verdicts(run) == {"abstain"}
    assert guarantee_of(run, card).unlike is None
    assert verdicts(run) == {"real", "fake"}
    verify_run(run)


def test_few_images_or_a_plain_card_are_not_compared(tmp_path, card):
    found = guarantee_of(made_run(tmp_path / "run", card, 11, 30), card)
    assert found.holds is None
    assert "too few to compare" in found.why
    plain = plain_card(card)
    assert guarantee_of(made_run(tmp_path / "plain", plain, 13, 8), plain) is None


def test_other_decoder_or_resize_ends_the_guarantee(tmp_path, card):
    other = {"decoder": "pillow of tomorrow", "identity": {"resize": "fast"}}
    run = made_run(tmp_path / "run", card, 12, N, **other)
    found = guarantee_of(run, card)
    assert found.holds is False
    assert "resize fast (calibrated with exact)" in found.why
    assert "decoded otherwise than for the calibration: pillow of tomorrow" in found.why
    assert verdicts(run) == {"real", "fake"}, "settings change no verdict"


def test_decoders_count_only_for_formats_of_the_calibration(tmp_path, card):
    run = made_run(tmp_path / "run", card, 2, N)
    more_rows(run, card, 3, 30, decoder="another", lossless="AVIF")
    rows = [row for row in current_rows(run, unfinished=True) if row["decoder"] == "another"]
    jpegs = sum(row["format"] == "JPEG" for row in rows)
    assert 0 < jpegs < len(rows)
    assert guarantee_of(run, card).counted.decoders["another"] == jpegs


def written(folder, card):
    path = folder / f"{card.name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(card.model_dump_json(exclude_none=True))))
    return str(path)


def plain_run(folder, card, seed, **options):
    """A finished run by a card that promises nothing."""
    plain = plain_card(card)
    run = made_run(folder / "run", plain, seed, N, **options)
    summary_of(run, plain)
    return run


def test_decide_compares_the_archive_unless_waived(tmp_path, card):
    run, calibrated = plain_run(tmp_path, card, 14, **POOR), written(tmp_path, card)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    summary = decide_run(run.store.url, calibrated, str(tmp_path / "decided"))
    assert summary["verdicts"] == {"real": 0, "fake": 0, "abstain": N}
    assert verdicts(RunDirectory.open(str(tmp_path / "decided"))) == {"abstain"}
    assert verdicts(run) == {"real", "fake"}, "the run that was read stays as it was"
    assert {path: path.read_bytes() for path in files} == files
    page, lines = render_run_report(summary), "\n".join(summary_lines(summary))
    assert "The guarantee does not hold." in page
    assert "JPEG quality" in page
    assert "guarantee: does not hold for this archive: images differ in jpeg_quality" in lines
    assert "at most 5 % are called fake" in lines
    out = str(tmp_path / "waived")
    waived = decide_run(run.store.url, calibrated, out, waive_guarantee=True)
    assert verdicts(RunDirectory.open(out)) == {"real", "fake"}
    guarantee = waived["guarantee"]
    assert (guarantee["holds"], guarantee["waived"], guarantee["unlike"]) == (False, True, None)
    assert waived["identity"]["waive_guarantee"] is True
    assert any("it was waived" in line for line in summary_lines(waived))
    plain = written(tmp_path, plain_card(card))
    again = decide_run(out, plain, str(tmp_path / "again"))
    assert "guarantee" not in again
    assert again["identity"]["waive_guarantee"] is False
    assert rows_of(RunDirectory.open(str(tmp_path / "again"))) == rows_of(run)
    with pytest.raises(ConfigError, match="waived contains a run"):
        decide_run(run.store.url, plain, out)
    new_run(tmp_path / "unfinished")
    with pytest.raises(ConfigError, match="unfinished contains a run that is not finished"):
        decide_run(run.store.url, plain, str(tmp_path / "unfinished"))


def test_decide_at_operating_point_states_its_measured_rate(tmp_path, card, capsys):
    point = OperatingPoint(
        rate=0.001, threshold=0.25, false_positive_rate=0.0, upper_bound=0.01, recall=0.7
    )
    run, out = plain_run(tmp_path, card, 14), str(tmp_path / "decided")
    path = written(tmp_path, card.model_copy(update={"operating_points": (point,)}))
    words = ["runs", "decide", run.store.url, "--ensemble", path, "--out", out, "--fpr"]
    assert main([*words, "0.2"]) == 2
    assert "choose one of 0.001" in capsys.readouterr().err
    assert main([*words, "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "at most 1 % are called fake (measured, not under the stated 0.1 %" in printed
    rows = rows_of(RunDirectory.open(out))
    assert rows
    assert all((row["score"] >= 0.25) == (row["verdict"] == "fake") for row in rows)


def test_cascade_is_compared_where_later_members_look(tmp_path):
    """As `calibrate` writes a cascade from a run in which every detector looked at every image, and
    `decide` then applies it there.
    """
    members = tuple(EnsembleMember(detector=path) for path in write_two(tmp_path))
    properties = properties_made(1, 3000)
    score = properties["score"]
    del properties[f"score:{NAME}"]
    properties["score:cheap"] = score
    properties["score:slow"] = np.where((score >= -1) & (score <= 2), score, np.nan)
    cascade = Cascade(first=1, band=(-1, 2), audit_share=0.0)
    update = {"rule": "cascade", "cascade": cascade, "members": members, "settings": None}
    found = calibrated_card(properties, np.arange(3000) % 2 == 1).model_copy(update=update)
    run, out = plain_run(tmp_path, found, 16), str(tmp_path / "decided")
    guarantee = decide_run(run.store.url, written(tmp_path, found), out)["guarantee"]
    assert (guarantee["holds"], guarantee["why"]) == (True, None)
    assert "score:slow" in {shift["feature"] for shift in guarantee["shifts"]}
    run = RunDirectory.open(out)
    assert verdicts(run) == {"real", "fake"}
    assert all(row["scores"]["slow"] is not None for row in rows_of(run))


def test_other_settings_are_refused_unless_waived(tmp_path, card):
    path, new = written(tmp_path, card), str(tmp_path / "new")
    nowhere = ClusterConfig(address="ray://nowhere.invalid:1")
    config = ScoreConfig(source=(str(tmp_path),), out=new, ensemble=path, resize="fast")
    with pytest.raises(ConfigError, match="the calibration does not hold with resize fast"):
        score_archive(config.model_copy(update={"cluster": nowhere}))
    assert not RunDirectory.open(new).exists()
    run = plain_run(tmp_path, card, 15, identity={"resize": "fast"})
    before, out = run.store.read("run.json"), str(tmp_path / "decided")
    with pytest.raises(ConfigError, match="scores with resize fast") as refused:
        decide_run(run.store.url, path, out)
    assert "--waive-guarantee" in refused.value.hint
    assert run.store.read("run.json") == before
    waived = decide_run(run.store.url, path, out, waive_guarantee=True)
    assert waived["guarantee"]["holds"] is False
