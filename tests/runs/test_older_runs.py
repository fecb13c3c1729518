"""Runs of schema 3, whose rows lack `quality` and more: read, resumed, compacted, retried, reused and decided beside rows of today."""

import yaml

from ray_app.archives import manifests
from ray_app.ensembles import EnsembleCard
from ray_app.errors import Status
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.runs import check_conservation, current_tables
from ray_app.runs.score_index import ScoreIndex, build_index
from ray_app.scoring.guarantee import settle_guarantee
from ray_app.scoring.rescore import decide_run
from tests.runs.small_run import NAME, SPEC, begun, digest, retried, rows_of, score_blocks
from tests.scoring.made_run import made_run, more_rows, properties_made
from tests.scoring.shifted import calibrated_card

NAMES = [f"{number:03}.jpg" for number in range(40)]


def made_older(run, number):
    """The parts of a manifest as schema 3 had them."""
    for block in run.parts(number):
        [rows] = run.part_tables(number, block)
        run.write_part(number, block, rows.drop_columns(["quality", "verdict_detail"]))
    run.write_json("run.json", run.describe() | {"schema": 3})


def older(tmp_path, **options):
    run = begun(tmp_path, NAMES, **options)
    made_older(run, 0)
    return run


def test_an_interrupted_one_goes_on_and_is_published(tmp_path):
    run = older(tmp_path, blocks={0, 1})
    described = run.describe()
    run.claim(described["identity"], described["detectors"], described["ensemble"])
    score_blocks(run, 0, blocks=set(range(20)) - {0, 1})
    run.publish(0)
    check_conservation(run)
    assert sorted(rows_of(run)) == NAMES
    assert {"quality" in table.column_names for table in current_tables(run)} == {False, True}
    assert all("score" in table.column_names for table in current_tables(run, ["image_id", "score", "quality"]))


def test_a_retry_merges_rows_of_today_into_it(tmp_path):
    run = older(tmp_path, fails=lambda name: Status.SOURCE_TIMEOUT if name.endswith("3.jpg") else None)
    run.publish(0)
    retried(run, 2, Status.SOURCE_TIMEOUT)
    rows = rows_of(run)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["attempt"] for name, row in rows.items() if name.endswith("3.jpg")} == {2}


def test_its_scores_are_found_for_reuse(tmp_path):
    run = older(tmp_path)
    run.publish(0)
    build_index(run, SPEC)
    found = ScoreIndex(run, tmp_path / "cache").find(digest("007.jpg"))
    assert found.said.scores == {NAME: rows_of(run)["007.jpg"]["score"]}
    assert found.facts.quality is None


def test_decide_and_the_guarantee_do_without_the_column(tmp_path):
    plain = EnsembleCard(name="plain", title="Plain", members=[{"detector": NAME}])
    card = calibrated_card(properties_made(1, 400), [number % 2 == 1 for number in range(400)], detector=NAME)
    run = made_run(tmp_path / "run", plain, 2, 200, drops=("quality", "verdict_detail"), finished=True)
    run.write_json("run.json", run.describe() | {"schema": 3})
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
    summary = decide_run(run.store.url, str(path))
    compared = {shift["feature"] for shift in summary["guarantee"]["shifts"]}
    assert compared == {feature.name for feature in card.population.features} - {"jpeg_quality"}
    assert summary["guarantee"]["holds"] is True
    more_rows(run, card, 3, 100)
    assert len(manifests(run.store)) == 2
    found = settle_guarantee(run, make_spec(card, limits=ImageLimits(), precision="fp32"))
    assert {shift.feature: shift.images for shift in found.shifts}["jpeg_quality"] < 100
    assert found.images == 300
