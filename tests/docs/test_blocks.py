"""The blocks of the documents, run as they are written; those that cannot run here are named, with
the reason.
"""

import csv
import re
import shutil
from dataclasses import replace

import pytest

from ray_app.cli.main import main
from tests.docs import shell
from tests.docs.blocks import CONSOLE, ROOT, blocks_of
from tests.make.stages import without_ray
from tests.simulation.archive import build_sample_archive

INTERNET, AWS, KUBERNETES, CONTAINERS = (
    "fetches from the internet",
    "needs an AWS account",
    "needs Kubernetes",
    "needs Docker",
)
WEIGHTS = "needs published weights, which are fetched from the internet"
CLUSTER = "needs a Ray cluster; tests/cluster and tests/scoring/test_job.py submit to one"
RELEASE = "publishes a release, or runs whole groups of tests"
FOREVER = "serves until it is stopped; tests/serving"
HOURS = "trains or evaluates for hours; tests/training and tests/evaluation run it small"
# (page, how a line or block begins, why it does not run here). Every other block does.
ELSEWHERE = (
    ("CONTRIBUTING.md", "make ", "is what runs these tests"),
    ("UPGRADING.md", "", "tests/test_upgrading.py"),
    ("README.md", "", "tests/test_readme.py"),
    ("docs/index.md", "uv pip ", "installs; tests/test_distribution.py"),
    ("docs/python.md", "", "tests of the Python API"),
    ("docs/tutorials/", "", "tests/docs/test_journeys.py"),
    ("docs/profile.md", "", "tests/test_profile_walk.py"),
    ("docs/provenance.md", "touchstone config trust update", INTERNET),
    ("docs/release-checklist.md", "", RELEASE),
    ("docs/versioning.md", "", RELEASE),
    ("docs/cluster.md", "", AWS),
    ("docs/archives.md", "COPY (", "needs an S3 Inventory"),
    ("docs/security.md", "", CLUSTER),
    ("docs/continuing.md", "touchstone score s3://bucket/photos", "goes on until it is stopped; tests/scoring/test_follow.py"),
    ("docs/continuing.md", "touchstone results s3://bucket/run", "reads the run of the lines before"),
    ("docs/kubernetes.md", "helm ", KUBERNETES),
    ("docs/kubernetes.md", "kubectl ", KUBERNETES),
    ("docs/kubernetes.md", "docker ", CONTAINERS),
    ("docs/collecting.md", "touchstone data collect", INTERNET),
    ("docs/photographs.md", "", f"{INTERNET}: the photographs, and the published backbone"),
    ("docs/generating.md", "touchstone data generate", WEIGHTS),
    ("docs/generating.md", "ray job ", CLUSTER),
    ("docs/detectors.md", "touchstone detectors fetch", INTERNET),
    ("docs/detectors.md", "touchstone detectors add clip_head.pth", WEIGHTS),
    ("docs/detectors.md", "touchstone detectors verify unifd", WEIGHTS),
    ("docs/detectors.md", "touchstone detectors fit clip-d-10k-plus", WEIGHTS),
    ("docs/detectors.md", "touchstone detectors add callable:imdlbenco", "trained weights; tests/detectors/callables/test_imdlbenco.py"),
    ("docs/detectors.md", "touchstone score photos --detector mesorch", "scores with the card of the line before"),
    ("docs/detectors.md", "touchstone score photos --detector my-head", "scores with the head that the line before fits"),
    ("docs/evaluation.md", "touchstone evaluate SOURCE", WEIGHTS),
    ("docs/perturbations.md", "touchstone evaluate PHOTOS", HOURS),
    ("docs/heads.md", "touchstone detectors", WEIGHTS),
    ("docs/heads.md", "touchstone score photos --detector unifd", WEIGHTS),
    ("docs/heads.md", "touchstone score features::run", f"{WEIGHTS}; tests/scoring/test_features.py"),
    ("docs/endpoint-limits.md", "TOUCHSTONE_TOKENS=… touchstone serve", FOREVER),
    ("docs/serving.md", "touchstone serve", FOREVER),
    ("docs/serving.md", "curl --data-binary @photo.jpg", "asks a running endpoint; tests/serving/http/test_app.py"),
    ("docs/serving.md", "from ray_app.serving.client", "asks a running endpoint; tests/serving/test_client.py"),
    ("docs/serving.md", "serve deploy", CLUSTER),
    ("docs/serving.md", "kubectl ", KUBERNETES),
    ("docs/serving.md", "docker ", CONTAINERS),
    ("docs/style.md", "", "checks a checkout, with tools that are not installed with it; make lint"),
    ("docs/training.md", "ray job ", CLUSTER),
    ("docs/trust.md", "touchstone score photos/ --detector unifd", WEIGHTS),
    ("docs/trust.md", "touchstone detectors calibrate", "needs hundreds of labelled pictures; tests/scoring/test_calibrated_card.py"),
    ("docs/trust.md", "touchstone score archive/ --ensemble mine.yaml", "needs the calibrated card of the line before"),
    ("docs/trust.md", "touchstone results archive-run --verdict", "needs the calibrated card of the lines before"),
    ("docs/calibration.md", "touchstone check photo.jpg --ensemble CARD", "needs a calibrated card; tests/cli/test_check.py"),
    ("docs/calibration.md", "touchstone score archive/ --ensemble CARD", "needs a calibrated card; tests/scoring/test_operating_points.py"),
    ("docs/calibration.md", "touchstone serve", FOREVER),
    ("docs/calibration.md", "touchstone runs decide", "needs a calibrated card; tests/evaluation/calibrate/test_run.py"),
    ("docs/calibration.md", "touchstone evaluate RUN-CARD", "needs a calibrated card; tests/evaluation/calibrate/test_run.py"),
    ("docs/calibration.md", "touchstone detectors calibrate", "needs hundreds of labelled pictures; tests/scoring/test_cascade.py"),
    ("docs/trust.md", "touchstone runs audit archive-run --draw 300", "draws more pictures than there are here; tests/cli/test_trust.py"),
)  # fmt: skip
# What a page leaves for its reader to name, and what that is here.
NAMES = {"RUN_A": "run", "RUN_B": "archive-run", "RUN": "run", "/data/run": "run"}
# Runs before a line: the adapter is copied, and seeded weights in DetectZoo's own cache replace
# what the line would fetch.
BEFORE = {
    "touchstone detectors add callable:detectzoo": (
        f"cp {ROOT}/examples/detectzoo_adapter.py . && zoo/bin/python {ROOT}/tests/detectors/detectzoo_seeds.py safe"
    )
}
PAGES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]


def reason(page, text):
    """Why this line or block does not run here; None: it does."""
    return next(
        (
            why
            for where, begins, why in ELSEWHERE
            if page.startswith(where) and text.startswith(begins)
        ),
        None,
    )


def runnable(page):
    """A page's blocks without the lines that stand in ELSEWHERE; a block of output stays where the
    lines before it do.
    """
    found, runs = [], False
    for block in blocks_of(ROOT / page):
        if block.language == "text":
            found += [block] * runs
            continue
        runs = False
        if block.language in CONSOLE:
            lines = [line for line in block.commands() if not reason(page, line)]
            lines = [
                one
                for line in lines
                for one in (
                    *(first for begins, first in BEFORE.items() if line.startswith(begins)),
                    line,
                )
            ]
            block = replace(block, text="\n".join(lines))
        elif not (block.title or block.language in ("python", "sql")) or reason(page, block.text):
            continue
        elif block.language == "sql":
            block = replace(
                block,
                language="python",
                text=f'import duckdb\n\nprint(duckdb.sql("""{block.text}""").fetchall())\n',
            )
        if block.text:
            named = re.sub(
                "|".join(rf"(?<![\w/-]){re.escape(name)}(?![\w-])" for name in NAMES),
                lambda one: NAMES[one[0]],
                block.text,
            )
            found.append(replace(block, text=named))
            runs = True
    return found


RUNNABLE = [page for page in PAGES if runnable(page)]


def test_every_exception_is_about_an_existing_block():
    texts = [(block.page, text) for page in [*PAGES, "CONTRIBUTING.md"] for block in blocks_of(ROOT / page)
             for text in (block.commands() if block.language in CONSOLE else [block.text])]  # fmt: skip
    unused = [(where, begins) for where, begins, _ in ELSEWHERE
              if begins and not any(page.startswith(where) and text.startswith(begins) for page, text in texts)]  # fmt: skip
    assert not unused


@pytest.fixture(scope="module")
def inputs(s3, tmp_path_factory):
    """What the pages' readers have: pictures under the names that the pages use, two scored
    archives, labels, a table, a bucket.
    """
    folder = tmp_path_factory.mktemp("reader")
    sample = build_sample_archive(folder / "archive", files=24)
    pictures = sorted((folder / "archive").rglob("*.jpg"))
    shutil.copytree(folder / "archive", folder / "photos")
    shutil.copy(pictures[0].rename(folder / "archive" / "photo.jpg"), folder)
    shutil.copy(pictures[1], folder / "cat.jpg")
    s3.bucket("bucket")
    for path in pictures[1:5]:
        s3.client().upload_file(str(path), "bucket", f"archive/{path.name}")
    with (
        sample.labels.open(newline="") as source,
        (folder / "labels.csv").open("w", newline="") as target,
    ):
        table = csv.DictWriter(
            target, ["sha256", "uri", "label", "generator"], extrasaction="ignore"
        )
        table.writeheader()
        renamed = str(pictures[0].relative_to(folder))
        table.writerows(
            row | {"uri": row["uri"].replace(renamed, "archive/photo.jpg")}
            for row in csv.DictReader(source)
        )
    with pytest.MonkeyPatch.context() as here, without_ray():
        here.chdir(folder)
        assert main(["score", "archive", "--ensemble", "tiny", "--out", "run"]) == 0
        assert main(["evaluate", "run", "--labels", "labels.csv", "--out", "figures-a"]) == 0
    shutil.copytree(folder / "run", folder / "archive-run")
    shutil.copytree(folder / "figures-a", folder / "figures-b")
    return folder


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUNNABLE)
def test_blocks_of_a_page_run(page, inputs, programs):
    steps = shell.run_blocks(runnable(page), inputs, programs)
    for step in steps:
        assert step.code == 0, f"{step.text}\n" + "\n".join(step.lines[-30:])
        assert shell.missing(step, inputs) == [], f"{step.text}\n" + "\n".join(step.lines[-60:])


def test_important_pages_run():
    """So that a page which comes to be left out by a wide line of the table is noticed."""
    names = (
        "calibration",
        "concepts",
        "detectors",
        "evaluation",
        "index",
        "perturbations",
        "runs",
        "trust",
    )
    assert {f"docs/{name}.md" for name in names} <= set(RUNNABLE)
