from functools import cache

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ray_app.detectors import load_card
from ray_app.evaluation import protocols
from ray_app.evaluation.protocols import Protocol, ProtocolFooter, ProtocolRow
from ray_app.metrics.table import MetricRow
from ray_app.metrics.values import MetricValue, undefined
from tests.evaluation.counted import HARD, RANKING, REPLIES, system_from, table_of

# the split had 30,000 images, as many real as fake, of five generators
N_REAL, N_FAKE = 15_000, 3_000
MODELS = {
    "real": "real", "ideogram-3.0": "Ideogram 3.0", "gpt-image-1": "GPT Image 1", "flux-1.1-pro": "Flux 1.1-pro",
    "flux.1-dev": "Flux 1.0-dev", "sd-3.5": "SD 3.5",
}  # fmt: skip
UNWEIGHTED, WEIGHTED = "average TPR (unweighted)", "average TPR (n-weighted)"
BALANCED = "balanced accuracy (printed as ROC AUC)"
SCORES = {"SwinV2-small": RANKING, "InternVL": REPLIES}
load_protocol = cache(protocols.load_protocol)


def published(name):
    [found] = [one for one in load_protocol("openfake-v1").reference if one.column == name]
    return found


def openfake_table(name):
    cells = published(name).rows
    groups = {}
    for model, row in MODELS.items():
        n = N_REAL if row == "real" else N_FAKE
        groups[model] = ("real" if row == "real" else "fake", round(cells[row] * n), n)
    system = system_from(name, groups, scores=SCORES.get(name, HARD))
    return table_of(load_protocol("openfake-v1"), [system])


def footer(table, name, system):
    return table.footers[system][name]


@pytest.mark.parametrize("name", ["CLIP-D-10k+", "Corvi2023", "Fusion", "InternVL"])
def test_averages_of_openfake_follow_from_its_counts(name):
    """Three decimals as printed, and what is printed as ROC AUC is balanced accuracy."""
    table = openfake_table(name)
    for row in MODELS.values():
        assert table.cells[name][row].value == pytest.approx(published(name).rows[row], abs=1e-12)
        assert table.cells[name][row].method == "clopper-pearson"
    for figure in (UNWEIGHTED, "F1", BALANCED):
        assert f"{footer(table, figure, name).value:.3f}" == f"{published(name).rows[figure]:.3f}"
    # Of evenly many images of each generator the two averages are one.
    weighted, plain = (footer(table, average, name).value for average in (WEIGHTED, UNWEIGHTED))
    assert weighted == pytest.approx(plain, abs=1e-12)
    auc = footer(table, "ROC AUC", name)
    if name == "InternVL":
        assert "no ranking" in auc.why
    else:
        assert auc.value == pytest.approx(footer(table, BALANCED, name).value)


def test_report_of_siglip2_follows_from_its_counts():
    """Of 10,000 fakes 9,155 are found, of 9,999 real images 9,733 are cleared."""
    protocol = load_protocol("open-deepfake")
    counts = {"real": ("real", 9_733, 9_999), "open-deepfake-preview": ("fake", 9_155, 10_000)}
    table = table_of(protocol, [system_from("siglip2", counts)])
    for name, value in protocol.reference[0].rows.items():
        assert f"{footer(table, name, 'siglip2').value:.4f}" == f"{value:.4f}", name
    recall = footer(table, "fake: recall", "siglip2")
    assert recall.n == 10_000
    assert recall.low < 0.9155 < recall.high
    flagged = footer(table, "false-positive rate", "siglip2")
    assert (flagged.value, flagged.n) == (pytest.approx(266 / 9_999), 9_999)


def test_port_of_community_forensics_is_in_the_same_table():
    name, named = "community-forensics-port", {"F1": "fake: F1"}
    [port] = [one for one in load_protocol("open-deepfake").reference if one.detector == name]
    published = load_card(name).published
    card = {named.get(one.metric, one.metric): one.value for one in published}
    expected = {"accuracy": 0.972, "fake: F1": 0.968, "ROC AUC": 0.992}
    assert port.rows == card == expected | {"false-positive rate": 0.021}
    assert not any(one.verified for one in published)


def groups(**more):
    return {"real": ("real", 90, 100), "a": ("fake", 30, 40), "b": ("fake", 60, 60), **more}


def test_both_averages_stand_under_their_names():
    table = table_of(None, [system_from("d", groups())])
    assert footer(table, UNWEIGHTED, "d").value == pytest.approx((0.75 + 1) / 2)
    assert footer(table, WEIGHTED, "d").value == pytest.approx(0.9)
    assert {row.name: row.n for row in table.rows} == {"real": 100, "a": 40, "b": 60}


def test_each_generator_against_all_reals_and_their_mean():
    """GRIP's and sidbench's way, against scikit-learn on the images themselves."""
    images = {
        "real": np.repeat([-2.0, 2.0], [90, 10]),
        "a": np.repeat([2.0, -2.0], [30, 10]),
        "b": np.repeat([2.0], 60),
    }
    aucs = []
    for name in "ab":
        scores = np.concatenate([images[name], images["real"]])
        aucs.append(roc_auc_score(np.arange(len(scores)) < len(images[name]), scores))
    table = table_of(load_protocol("grip"), [system_from("d", groups())])
    found = [table.cells["d"][f"{name}, AUC"].value for name in "ab"]
    assert found == pytest.approx(aucs, abs=1e-12)
    assert footer(table, "mean ROC AUC", "d").value == pytest.approx(np.mean(aucs), abs=1e-12)
    assert footer(table, "mean balanced accuracy", "d").value == pytest.approx((0.825 + 0.95) / 2)


def test_sidbench_has_three_figures_of_each_generator():
    table = table_of(load_protocol("sidbench"), [system_from("d", groups())])
    a = average_precision_score(
        np.repeat([1, 0], [40, 100]), np.repeat([2.0, -2.0, -2.0, 2.0], [30, 10, 90, 10])
    )
    b = average_precision_score(np.repeat([1, 0], [60, 100]), [2.0] * 60 + [-2.0] * 90 + [2.0] * 10)
    assert table.cells["d"]["a, AP"].value == pytest.approx(a, abs=1e-12)
    assert table.cells["d"]["a, accuracy at oracle threshold"].value == pytest.approx(120 / 140)
    assert footer(table, "mean AP", "d").value == pytest.approx((a + b) / 2, abs=1e-12)


def test_a_row_of_several_generators_is_of_all_their_images():
    figures = {"both": {}, "AUC": {"figure": "auc"}, "AP": {"figure": "average_precision"}}
    rows = [ProtocolRow(name=name, generators=("*",), **more) for name, more in figures.items()]
    footers = (ProtocolFooter(name="m", figure="weighted:auc"),)
    texts = {"name": "p", "title": "p", "source": "s", "what": "w", "averages": "a"}
    system = system_from("d", groups())
    table = table_of(Protocol(**texts, rows=tuple(rows), footers=footers), [system])
    both, auc, precision = (table.cells["d"][name] for name in figures)
    assert both.value == pytest.approx(0.9)
    assert both.n == 100
    # Exact: the area over the union is the mean by images of the areas over its parts.
    expected = system.figures["auc"].value
    assert [auc.value, footer(table, "m", "d").value] == pytest.approx([expected] * 2, abs=1e-12)
    truth = np.repeat([1, 0], [100, 100])
    scores = np.repeat([2.0, -2.0, -2.0, 2.0], [90, 10, 90, 10])
    assert precision.value == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_row_without_images_has_a_reason():
    system = system_from("d", {"real": ("real", 9, 10), "other": ("fake", 3, 4)})
    table = table_of(load_protocol("openfake-v1"), [system])
    assert table.cells["d"]["SD 3.5"] == undefined("no image of the data belongs here")
    assert table.cells["d"]["other"].value == 0.75
    assert [row.name for row in table.rows][-1] == "other"


def test_rows_show_what_a_system_was_trained_on():
    mine = groups(progan=("fake", 5, 5))
    systems = [
        system_from("cnndetection", mine, card=load_card("cnndetection")),
        system_from("other", mine),
    ]
    table = table_of(load_protocol("cnndetection"), systems)
    seen = {row.name: row.seen for row in table.rows}
    assert seen["ProGAN, AP"] == {"cnndetection": "in-training", "other": "unknown"}
    # none of it is in the data
    assert seen["StyleGAN, AP"] == {"cnndetection": "unknown", "other": "unknown"}
    plain = {row.name: row.seen["cnndetection"] for row in table_of(None, systems).rows}
    assert plain == {"real": "unknown", "a": "unseen", "b": "unseen", "progan": "in-training"}


def test_rows_of_masks_are_read_at_the_protocols_size():
    figure = MetricValue(0.5, 0.4, 0.6, 20, "student")
    other = MetricValue(0.1, 0.0, 0.2, 20, "student")
    masks = [
        MetricRow("d", "", "masks at original size: sd15", "pixel_f1", other),
        MetricRow("d", "", "masks at network size: sd15", "pixel_f1", figure),
    ]
    counts = {"real": ("real", 90, 100), "sd15": ("fake", 50, 100)}
    system = system_from("d", counts, kinds={"sd15": "local"})
    protocol = load_protocol("opensdi")
    assert table_of(protocol, [system], masks).cells["d"]["SD1.5, pixel F1"] == figure
    cells = table_of(protocol, [system]).cells["d"]
    why = "this detector returns no masks, or they were not measured"
    assert cells["SD1.5, pixel F1"].why == why
    assert cells["SD1.5, F1"].value == pytest.approx(2 * 0.5 / (0.5 + 0.1 + 1))
