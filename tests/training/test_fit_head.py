"""Labels of the images that a head is fitted to, the features of their backbone, and the card."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import yaml

from ray_app.detectors import load_card, load_detector
from ray_app.detectors.card import Backbone
from ray_app.errors import ConfigError, DetectorError
from ray_app.training.embeddings import embed_images
from ray_app.training.fit_head import (
    FittedHead,
    load_backbone_detector,
    read_labels,
    save_head,
    write_head_card,
)
from ray_app.training.head import HeadSettings, cross_validate_auc, fit_head
from tests.detectors.small_clip import small_card


def written(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_in_every_format(tmp_path, suffix):
    numbers = suffix != ".csv"
    rows = [
        {"uri": "a.png", "label": 0 if numbers else "Real"},
        {"uri": "/there/b.png", "label": 1 if numbers else "FAKE"},
    ]
    rows.append({"uri": "s3://bucket/c.png", "label": 1 if numbers else "1"})
    found = read_labels(str(written(tmp_path / f"mine{suffix}", rows)))
    assert [row.uri for row in found] == [f"{tmp_path}/a.png", "/there/b.png", "s3://bucket/c.png"]
    assert [row.label for row in found] == [0, 1, 1]


def test_labels_that_a_spreadsheet_saved_are_read(tmp_path):
    (tmp_path / "mine.csv").write_text(
        "URI;Label;Group\r\na.png;0.0;x\r\nb.png;1.0;y\r\n", encoding="utf-8-sig"
    )
    found = read_labels(str(tmp_path / "mine.csv"))
    assert [(row.uri, row.label, row.group) for row in found] == [
        (f"{tmp_path}/a.png", 0, "x"),
        (f"{tmp_path}/b.png", 1, "y"),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"uri": "a.png", "label": "genuine"}], "row 1: 'genuine' is not a label"),
        (
            [
                {"uri": "a.png", "label": "real", "group": "x"},
                {"uri": "b.png", "label": "real", "group": ""},
            ],
            "some rows have a group",
        ),
    ],
)
def test_labels_that_are_not_understood_are_told_by_row(tmp_path, rows, said):
    path = written(tmp_path / "mine.csv", rows)
    with pytest.raises(ConfigError) as caught:
        read_labels(str(path))
    assert caught.value.message.startswith(str(path))
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.lst", b"a real", "not a file of labels"),
        ("mine.csv", b"uri;truth\na.png;real\n", "need the column `label`"),
        ("mine.parquet", b"PAR1", "cannot be read as a table"),
        ("absent.csv", None, r"absent\.csv"),
    ],
)
def test_files_that_are_no_labels_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_labels(str(tmp_path / name))


def pictures(n, side=28):
    """Dark and bright noise."""
    random = np.random.default_rng(0)
    return np.stack(
        [
            random.integers(0, 60 + 150 * (index % 2), (side, side, 3), dtype=np.uint8)
            for index in range(n)
        ]
    )


@pytest.mark.parametrize(
    ("feature", "normalise", "width"), [("class-token", True, 64), ("projected", False, 32)]
)
def test_fitted_head_scores_through_its_card(tmp_path, feature, normalise, width):
    base, _ = small_card(tmp_path, feature=feature, normalise=normalise)
    (tmp_path / "weights.pth").unlink()
    pixels, labels = pictures(40), np.arange(40) % 2
    backbone = load_backbone_detector(base, precision="fp32")
    found = dict(embed_images(backbone, enumerate(pixels)))
    assert list(found) == list(range(40))
    features = np.stack(list(found.values()))
    assert features.shape == (40, width)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5) == normalise

    head = fit_head(features, labels, HeadSettings("svm")).as_log_odds()
    aucs = cross_validate_auc(features, labels, "svm")
    made = tmp_path / "made"
    sha256 = save_head(made / "weights.pth", head)
    state = torch.load(made / "weights.pth", weights_only=True)["model"]
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        "fc.weight": (1, width),
        "fc.bias": (1,),
    }, "as published"
    fitted = FittedHead("mine", base, "svm", "mine.csv", 20, 20, aucs)
    card = write_head_card(made / "card.yaml", fitted, weights=made / "weights.pth", sha256=sha256)
    assert card == load_card(made / "card.yaml")
    assert (card.name, card.preprocessing, card.architecture.arguments) == (
        "mine",
        base.preprocessing,
        base.architecture.arguments,
    )
    (figure,) = card.published
    assert (figure.metric, figure.n, figure.verified) == ("ROC AUC", 40, True)
    assert figure.value == pytest.approx(np.mean(aucs), abs=1e-4)
    assert load_detector(card, precision="fp32").score(pixels) == pytest.approx(
        head.score(features), abs=1e-4
    )


def test_head_card_names_shipped_and_describes_other_backbones(tmp_path):
    given = {"weights": tmp_path / "weights.pth", "sha256": "0" * 64}
    for base in (load_card("unifd"), load_card("clip-d-10k-plus:thumb1024")):
        fitted = FittedHead("mine", base, "svm", "mine.csv", 5, 5, [0.5])
        written = write_head_card(tmp_path / "card.yaml", fitted, **given)
        data = yaml.safe_load((tmp_path / "card.yaml").read_text())
        assert data["backbone"] == base.backbone.name
        assert (written.backbone, written.preprocessing) == (base.backbone, base.preprocessing)
    small, _ = small_card(tmp_path)
    renamed = small.model_copy(
        update={"backbone": small.backbone.model_copy(update={"name": "unifd"})}
    )
    fitted = FittedHead("mine", renamed, "svm", "mine.csv", 5, 5, [0.5])
    other = write_head_card(tmp_path / "other.yaml", fitted, **given)
    assert isinstance(other.backbone, Backbone)
    assert other.backbone.weights.uri == str(tmp_path / "clip.safetensors")


def test_backbone_of_another_family_or_without_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="clip-linear"):
        load_backbone_detector(load_card("touchstone-tiny"))
    base, _ = small_card(tmp_path)
    (tmp_path / "clip.safetensors").unlink()
    with pytest.raises(DetectorError, match=r"small-tower.*clip\.safetensors"):
        load_backbone_detector(base)
