"""The masks of whole small runs against truths in files and tables, held to the figures of a
brute-force reading of both.
"""

import base64
import io
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from ray_app.evaluation.localization import measure_localization, resize_nearest
from ray_app.evaluation.protocols import LocalizationRules
from ray_app.metrics.localization import LOCALIZATION
from ray_app.metrics.table import MetricsTable
from ray_app.reports.evaluation.page import evaluation_lines, render_evaluation
from ray_app.reports.evaluation.result import EvaluationMeta, EvaluationResult
from ray_app.runs import current_rows
from tests.evaluation.masked_run import Picture, joined, masked_run, png, write_archive
from tests.make.evaluations import measured
from tests.make.images import encoded, photo
from tests.make.servers.faulty import FaultyServer

A, B = "finder", "seeker"


def pictures_of(seed=0):
    """Local edits of several sizes by two generators, a whole fake and two reals; two systems, one
    with masks of its own size.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for place, size in enumerate([(60, 40), (16, 16), (31, 77), (64, 9), (200, 150)]):
        truth = np.zeros(size[::-1], bool)
        truth[2 : 2 + size[1] // 2, 1 : 1 + size[0] // 3] = True
        found[f"{place}.png"] = Picture(size, generator="sd" if place % 2 else "flux", truth=truth)
    found["whole.png"] = Picture(kind="whole", generator="sd")
    found["real.png"] = Picture(label="real", generator="real:coco", kind="real")
    found["quiet.png"] = Picture(label="real", generator="real:coco", kind="real")
    for picture in found.values():
        picture.masks = {
            (A, None): rng.integers(0, 256, (16, 16), np.uint8),
            (B, None): rng.integers(0, 256, (24, 32), np.uint8),
        }
    found["quiet.png"].masks = {
        (A, None): np.zeros((16, 16), np.uint8),
        (B, None): np.zeros((24, 32), np.uint8),
    }
    return found


def network_pair(picture, system):
    """Mask and truth at the network's size, pixel by pixel."""
    mask = picture.masks[system, None] / 255
    high, wide = mask.shape
    old_high, old_wide = picture.truth.shape
    return mask, picture.truth[
        np.ix_(np.arange(high) * old_high // high, np.arange(wide) * old_wide // wide)
    ]


def original_pair(picture, system):
    """Mask and truth at the image's size."""
    stretched = Image.fromarray(picture.masks[system, None]).resize(
        picture.size, Image.Resampling.BILINEAR
    )
    return np.asarray(stretched) / 255, picture.truth


def reference(pairs, threshold=0.5):
    """Means over images by scikit-learn."""
    flat = [(truth.ravel(), mask.ravel(), mask.ravel() > threshold) for mask, truth in pairs]
    return {
        "pixel_f1": np.mean([f1_score(truth, marked) for truth, _, marked in flat]),
        "pixel_iou": np.mean([jaccard_score(truth, marked) for truth, _, marked in flat]),
        "pixel_auc": np.mean([roc_auc_score(truth, mask) for truth, mask, _ in flat]),
        "pixel_accuracy": np.mean([np.mean(truth == marked) for truth, _, marked in flat]),
    }


def labels_of(folder, run, pictures):
    """A file of labels for a run."""
    lines = ["uri,label,generator,mask_uri"]
    for row in current_rows(run):
        picture = pictures[row["uri"].rpartition("/")[2]]
        lines.append(f"{row['uri']},{picture.label},{picture.generator},{picture.mask_uri or ''}")
    place = folder / "labels.csv"
    place.write_text("\n".join(lines), encoding="utf-8")
    return place


def values(figures):
    return {name: figures[name].value for name in LOCALIZATION}


def metrics_of(found):
    return MetricsTable(tuple(found.rows))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The pictures, and their run."""
    folder = tmp_path_factory.mktemp("seen")
    pictures = pictures_of()
    write_archive(folder, pictures)
    return pictures, masked_run(folder, pictures)


def test_metrics_at_both_sizes_equal_scikit_learn(seen):
    (pictures, run), threshold = seen, 0.7
    found = measure_localization(
        run, joined(run, pictures), rules=LocalizationRules(threshold=threshold)
    )
    systems, metrics = found.info.systems, metrics_of(found)
    pairs = [(one.system, one.resolution) for one in systems]
    assert pairs == [*product((A, B), ("network", "original"))]
    edits = [picture for picture in pictures.values() if picture.truth is not None]
    for one in systems:
        pair = network_pair if one.resolution == "network" else original_pair
        expected = reference([pair(edit, one.system) for edit in edits], threshold)
        whole = metrics.select(one.system, scope=one.scope)
        assert values(whole) == pytest.approx(expected, abs=1e-9)
        for part in one.generators:
            own = [pair(edit, one.system) for edit in edits if edit.generator == part.name]
            found_here = metrics.select(one.system, scope=one.get_scope(part.name))
            assert values(found_here) == pytest.approx(reference(own, threshold), abs=1e-9)
            assert part.n == len(own)
        assert {part.name for part in one.generators} == {"flux", "sd"}
    assert found.info.policy["empty"] == "skip"
    assert (found.info.images, found.info.without_label, found.info.unreadable) == (8, 0, ())


def test_rules_of_benchmarks_are_measured_too(seen):
    pictures, run = seen

    def by_rules(**rules):
        given = {"rules": LocalizationRules(**rules), "has_overlays": False}
        return measure_localization(run, joined(run, pictures), **given)

    policies = ("plain", "opensdi", "imdlbenco")
    asked = {policy: by_rules(policy=policy, threshold=0.5) for policy in policies}
    other = by_rules(threshold=0.9)
    edits = [picture for picture in pictures.values() if picture.truth is not None]
    network, original, *_ = asked["plain"].info.systems
    assert len(network.rules) == 4
    assert not original.rules
    expected = reference([network_pair(edit, A) for edit in edits])
    plain = metrics_of(asked["plain"])
    opensdi = plain.select(A, scope="masks by OpenSDI")
    assert values(opensdi) == pytest.approx(expected, abs=1e-6)
    origin = plain.select(A, scope="masks by IMDLBenCo, origin")
    whole = (pictures["whole.png"].masks[A, None] > 127).mean()
    all_eight = (5 * expected["pixel_f1"] + 2 * whole / (1 + whole)) / 8  # two reals count as 0
    assert origin["pixel_f1"].value == pytest.approx(all_eight, abs=1e-6)
    assert (opensdi["pixel_f1"].n, origin["pixel_f1"].n) == (5, 8)
    # The threshold of the benchmarks stays one half, and their rules can be the headline.
    for scope in network.rules:
        assert metrics_of(other).select(A, scope=scope) == plain.select(A, scope=scope)
    assert metrics_of(asked["opensdi"]).select(A, scope=network.scope) == opensdi
    assert metrics_of(asked["imdlbenco"]).select(A, scope=network.scope) == origin


def test_views_have_figures_of_their_own(tmp_path):
    pictures = pictures_of(1)
    for name, picture in pictures.items():
        if name != "0.png":  # a view does not need to be of every image
            picture.masks[A, "jpeg:50"] = picture.masks[A, None] // 2
    write_archive(tmp_path, pictures)
    run = masked_run(tmp_path, pictures)
    found = measure_localization(run, joined(run, pictures))
    (network, original, *_), metrics = found.info.systems, metrics_of(found)
    edits = [picture for name, picture in pictures.items() if picture.truth is not None]
    assert values(metrics.select(A, scope=network.scope)) == pytest.approx(
        reference([network_pair(edit, A) for edit in edits]), abs=1e-9
    )
    [view] = network.views
    assert (view.name, view.n) == ("jpeg:50", 4)
    dark = [(edit.masks[A, "jpeg:50"] / 255, network_pair(edit, A)[1]) for edit in edits[1:]]
    shown = metrics.select(A, view="jpeg:50", scope=network.scope)
    assert values(shown) == pytest.approx(reference(dark), abs=1e-9)
    assert original.views[0].n == 4


def test_unreadable_truths_are_counted_with_reasons(tmp_path):
    pictures = pictures_of()
    write_archive(tmp_path, pictures)
    (tmp_path / "truths" / "0.png").write_bytes(b"no image at all")
    (tmp_path / "truths" / "1.png").write_bytes(png(np.zeros((5, 5), np.uint8)))
    (tmp_path / "truths" / "2.png").unlink()
    pictures["3.png"].mask_uri = None
    pictures["4.png"].mask_uri = f"{tmp_path}/table.parquet#row=x&column=mask"
    run = masked_run(tmp_path, pictures)
    found = measure_localization(run, joined(run, pictures, without=["quiet.png"]))
    reasons = {one.reason: (one.n, one.example) for one in found.info.unreadable}
    assert {reason: n for reason, (n, _) in reasons.items()} == {
        "unsupported_format": 1, "corrupt_image": 1, "source_missing": 2, "no_reference": 1,
    }  # fmt: skip
    assert "its mask is 5 × 5 pixels, the image 16 × 16" in reasons["corrupt_image"][1]
    result = EvaluationResult(EvaluationMeta(localization=found.info))
    told = [line for line in evaluation_lines(result) if "Some masks could not be used" in line]
    assert len(told) == 4
    assert any("warning: " in line and "its mask is 5 × 5 pixels" in line for line in told)
    assert (found.info.images, found.info.without_label) == (2, 1)
    for one in found.info.systems:
        pixel_f1 = metrics_of(found).find("pixel_f1", one.system, scope=one.scope)
        assert pixel_f1.why == "no image with a mask and a truth"


def name_of(row):
    """The key of a member of a table: the number of its row."""
    member = row["member"] or row["uri"].rpartition("=")[2]
    return str(int(member.removeprefix("row-")))


def test_truths_and_images_in_a_table_are_read_there(tmp_path):
    truth = np.zeros((40, 60), bool)
    truth[5:30, 20:50] = True
    drawn = truth.astype(np.uint8) * np.uint8(255)
    mask = np.asarray(Image.fromarray(drawn).resize((16, 16), Image.Resampling.BOX))
    table, images = (
        tmp_path / "all.parquet",
        [encoded(photo(60, 40, seed), "PNG") for seed in range(6)],
    )
    pq.write_table(pa.table({"image": images, "mask": [png(drawn)] * 6}), table, row_group_size=2)
    pictures = {
        str(row): Picture(
            truth=truth,
            masks={(A, None): mask if row % 2 else 255 - mask},
            mask_uri=f"{table}#row={row}&column=mask",
        )
        for row in range(6)
    }
    run = masked_run(tmp_path, pictures, source=table, name_of=name_of)
    found = measure_localization(run, joined(run, pictures, name_of=name_of))
    assert found.info.unreadable == ()
    expected = reference([original_pair(picture, A) for picture in pictures.values()])
    whole = metrics_of(found).select(A, scope=found.info.systems[1].scope)
    assert values(whole) == pytest.approx(expected, abs=1e-9)
    assert all(one.picture is not None for one in found.overlays)
    assert len(found.overlays) == 6


def test_overlays_are_the_worst_and_the_best_of_each_system(tmp_path):
    truth = np.zeros((40, 60), bool)
    truth[10:30, 10:40] = True
    pictures = {}
    for rows in range(21):  # of the truth that are found
        mask = np.zeros((40, 60), np.uint8)
        mask[10 : 10 + rows, 10:40] = 255
        pictures[f"{rows:02}.png"] = Picture(truth=truth, masks={(A, None): mask, (B, None): mask})
    write_archive(tmp_path, pictures)
    photo(61, 40).save(tmp_path / "archive" / "18.png")
    run = masked_run(tmp_path, pictures)
    (tmp_path / "archive" / "19.png").unlink()
    found = measure_localization(run, joined(run, pictures)).overlays
    for system in (A, B):
        names = [one.uri[-6:-4] for one in found if one.system == system]
        assert names == ["00", "01", "02", "18", "19", "20"]
    one = next(one for one in found if one.uri.endswith("02.png"))
    assert (one.f1, one.iou) == (pytest.approx(4 / 22), pytest.approx(0.1))
    shown = Image.open(io.BytesIO(base64.b64decode(one.picture)))
    assert (shown.format, shown.size) == ("JPEG", (60, 40))
    gone = {one.uri[-6:-4]: one.why for one in found if one.picture is None}
    assert gone["18"] == "the image has another size than when it was scored"
    assert gone["19"].startswith("source_missing")
    assert measure_localization(run, joined(run, pictures), has_overlays=False).overlays == []


def test_run_without_masks_or_labels_has_no_metrics(seen, tmp_path):
    pictures, run = {"a.png": Picture()}, seen[1]
    write_archive(tmp_path, pictures)
    bare = masked_run(tmp_path, pictures)
    assert measure_localization(bare, joined(bare, pictures)) is None
    info = measure_localization(run, lambda columns: iter(())).info
    assert (info.images, info.without_label, info.systems) == (0, 8, ())


def test_empty_masks_of_fakes_are_warned_of(tmp_path):
    pictures = pictures_of()
    write_archive(tmp_path, pictures)
    run = masked_run(tmp_path, pictures)
    for name in ("0.png", "1.png"):
        place = tmp_path / "truths" / name
        Image.new("L", Image.open(place).size, 40).save(place)
    labels = str(labels_of(tmp_path, run, pictures))
    document = measured(tmp_path, run.store.url, labels=labels, key="uri")
    assert "The masks of 2 fakes mark nothing as altered" in document.meta.localization.warning
    assert str(tmp_path / "truths/1.png") in document.meta.localization.warning
    [line] = [line for line in evaluation_lines(document) if "mark nothing" in line]
    assert line.startswith("warning: ")
    assert "mark nothing as altered" in render_evaluation(document)


def test_truths_shrink_as_opencv_shrinks_them():
    # golden/maskclip.md §3: the ellipse of 360 × 480, 18,073 pixels, is 27,420 pixels at 512 × 512
    # by INTER_NEAREST.
    y, x = np.mgrid[:360, :480]
    across, down = 480 // 5, 360 // 6
    distance = (x - 3 * 480 // 8) ** 2 * down**2 + (y - 5 * 360 // 8) ** 2 * across**2
    truth = distance <= across**2 * down**2
    assert truth.sum() == 18_073
    assert resize_nearest(truth.astype(np.uint8), (512, 512)).sum() == 27_420
    assert resize_nearest(np.array([[1, 2, 3]], np.uint8), (2, 2)).tolist() == [[1, 2], [1, 2]]


def test_masks_are_read_within_the_run_s_own_limits(seen):
    pictures, run = seen
    described = run.describe()
    identity = described["identity"] | {"limits": {"max_pixels": 300}}
    run.write_json("run.json", described | {"identity": identity})
    try:
        info = measure_localization(run, joined(run, pictures), has_overlays=False).info
    finally:
        run.write_json("run.json", described)
    assert [(one.reason, one.n) for one in info.unreadable] == [("image_too_large", 4)]


def test_masks_on_the_server_of_the_labels_are_read(seen, tmp_path):
    pictures, run = seen
    folder = Path(pictures["0.png"].mask_uri).parent
    lines = labels_of(tmp_path, run, pictures).read_text().replace(f"{folder}/", "")
    with FaultyServer() as server:
        server.objects["/labels.csv"] = lines.encode()
        for name, picture in pictures.items():
            if picture.mask_uri:
                server.objects[f"/{name}"] = Path(picture.mask_uri).read_bytes()
        found = measured(tmp_path, run.store.url, labels=f"{server.url}/labels.csv", key="uri")
    info = found.meta.localization
    assert (info.images, info.unreadable) == (8, ())
