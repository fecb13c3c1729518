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
from tests.make.networks.small_clip import small_card


def write_rows(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_are_read_in_every_format(tmp_path, suffix):
    labels = ["Real", "FAKE", "1"] if suffix == ".csv" else [0, 1, 1]
    uris = ["a.png", "/there/b.png", "s3://bucket/c.png"]
    rows = [{"uri": uri, "label": label} for uri, label in zip(uris, labels, strict=True)]
    found = read_labels(write_rows(tmp_path / f"mine{suffix}", rows))
    assert [row.uri for row in found] == [f"{tmp_path}/a.png", *uris[1:]]
    assert [row.label for row in found] == [0, 1, 1]


def test_labels_of_a_spreadsheet_are_read(tmp_path):
    text = "URI;Label;Group\r\na.png;0.0;x\r\nb.png;1.0;y\r\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8-sig")
    found = read_labels(str(tmp_path / "mine.csv"))
    expected = [(f"{tmp_path}/a.png", 0, "x"), (f"{tmp_path}/b.png", 1, "y")]
    assert [(row.uri, row.label, row.group) for row in found] == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.lst", "a real", "not a file of labels"),
        ("mine.csv", "uri;truth\na.png;real\n", "need the column `label`"),
        ("mine.csv", "uri,label\na.png,genuine\n", "mine.csv.*row 1: 'genuine' is not a label"),
        ("mine.csv", "uri,label,group\na.png,real,x\nb.png,real,\n", "some rows have a group"),
        ("mine.parquet", "PAR1", "cannot be read as a table"),
        ("absent.csv", None, r"absent\.csv"),
    ],
)
def test_invalid_labels_are_rejected(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_labels(str(tmp_path / name))


def noise(count, side=28):
    """Dark and bright images in turn."""
    random = np.random.default_rng(0)
    bounds = [60 + 150 * (index % 2) for index in range(count)]
    return np.stack([random.integers(0, most, (side, side, 3), dtype=np.uint8) for most in bounds])


@pytest.mark.parametrize(
    ("feature", "normalise", "width"), [("class-token", True, 64), ("projected", False, 32)]
)
def test_fitted_head_scores_through_its_card(tmp_path, feature, normalise, width):
    base, _ = small_card(tmp_path, feature=feature, normalise=normalise)
    (tmp_path / "weights.pth").unlink()
    pixels, labels = noise(40), np.arange(40) % 2
    backbone = load_backbone_detector(base, precision="fp32")
    found = dict(embed_images(backbone, enumerate(pixels)))
    assert list(found) == list(range(40))
    features = np.stack(list(found.values()))
    assert features.shape == (40, width)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5) == normalise

    head = fit_head(features, labels, HeadSettings("svm")).as_log_odds()
    aucs = cross_validate_auc(features, labels, "svm")
    out = tmp_path / "made"
    sha256 = save_head(out / "weights.pth", head)
    state = torch.load(out / "weights.pth", weights_only=True)["model"]
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert shapes == {"fc.weight": (1, width), "fc.bias": (1,)}, "as published"
    fitted = FittedHead("mine", base, "svm", "mine.csv", 20, 20, aucs)
    card = write_head_card(out / "card.yaml", fitted, weights=out / "weights.pth", sha256=sha256)
    assert card == load_card(out / "card.yaml")
    assert (card.name, card.preprocessing) == ("mine", base.preprocessing)
    assert card.architecture.arguments == base.architecture.arguments
    (figure,) = card.published
    assert (figure.metric, figure.n, figure.verified) == ("ROC AUC", 40, True)
    assert figure.value == pytest.approx(np.mean(aucs), abs=1e-4)
    scores = load_detector(card, precision="fp32").score(pixels)
    assert scores == pytest.approx(head.score(features), abs=1e-4)


def test_head_card_names_shipped_and_describes_other_backbones(tmp_path):
    def write(base):
        fitted = FittedHead("mine", base, "svm", "mine.csv", 5, 5, [0.5])
        path, weights = tmp_path / "mine.yaml", tmp_path / "weights.pth"
        card = write_head_card(path, fitted, weights=weights, sha256="0" * 64)
        return card, yaml.safe_load(path.read_text())["backbone"]

    for base in (load_card("unifd"), load_card("clip-d-10k-plus:thumb1024")):
        card, backbone = write(base)
        assert backbone == base.backbone.name
        assert (card.backbone, card.preprocessing) == (base.backbone, base.preprocessing)
    small, _ = small_card(tmp_path)
    renamed = small.backbone.model_copy(update={"name": "unifd"})
    card, backbone = write(small.model_copy(update={"backbone": renamed}))
    assert isinstance(backbone, dict)
    assert card.backbone.weights.uri == str(tmp_path / "clip.safetensors")


def test_backbone_of_another_family_is_rejected():
    with pytest.raises(ConfigError, match="clip-linear"):
        load_backbone_detector(load_card("touchstone-tiny"))


def test_backbone_without_weights_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    base, _ = small_card(tmp_path)
    (tmp_path / "clip.safetensors").unlink()
    with pytest.raises(DetectorError, match=r"small-tower.*clip\.safetensors"):
        load_backbone_detector(base)
