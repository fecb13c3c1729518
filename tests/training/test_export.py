"""What a training hands out: a card and weights for Touchstone, timm, and transformers."""

import copy
import json
import math
import shutil

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from ray_app.detectors import load_card, load_detector, verify_weights
from ray_app.errors import DetectorError
from ray_app.evaluation.systems import is_named
from ray_app.reports.training import Figures, TrainingFacts
from ray_app.storage import Store
from ray_app.training.export import (
    MAX_GENERATORS,
    export,
    inherit_licence,
    make_card_figures,
)
from ray_app.training.networks import training_card
from ray_app.training.weight_files import make_processor_config, measure_size
from tests.make.file_modes import modes_in, umask
from tests.make.networks.small_clip import small_card
from tests.training.made import figures, made, picture
from tests.training.small_recipes import SIGLIP, VIT, recipe


def exported(tmp_path, given):
    return export(Store.open(str(tmp_path)), *given)


def data_of_export(tmp_path, given, splits):
    """The training data on the card of a training that saw these splits."""
    splits = {name: {"real": 2, "fake": 3, "generators": seen} for name, seen in splits.items()}
    facts = TrainingFacts.from_dict({"data": {"splits": splits}})
    return exported(tmp_path, given._replace(facts=facts)).training_data


def score_in_torch(network, output, detector, pixels):
    """The log-odds of one prepared image, by the network itself."""
    with torch.no_grad():
        answer = network(detector.normalise(torch.from_numpy(pixels)))
    logits = answer if isinstance(answer, torch.Tensor) else answer.logits
    if output.sign is not None:
        return (logits[0, 0] * output.sign).item()
    fake = output.index_among(output.labels)
    return (logits[0, fake] - logits[0, 1 - fake]).item()


def test_figures_of_a_card_have_masks_and_few_generators():
    measured = figures(3) | {"pixel_f1": 0.5, "pixel_iou": 0.25, "n": 7}
    found = make_card_figures(Figures.from_dict(measured), "x", "y")
    pixels = {one.metric: (one.value, one.n) for one in found if one.metric.startswith("pixel")}
    assert pixels == {"pixel F1": (0.5, 7), "pixel IoU": (0.25, 7)}
    many = figures(3, generators=[f"g{index}" for index in range(20)])
    assert len(make_card_figures(Figures.from_dict(many), "x", "y")) > 40
    more = {f"h{index}": many["generators"]["g0"] for index in range(MAX_GENERATORS)}
    many["generators"] |= more
    assert not any("g0" in one.set for one in make_card_figures(Figures.from_dict(many), "x", "y"))


@pytest.mark.parametrize("kind", ["vit", "residual", "swin", "siglip", "maskclip"])
def test_exported_detector_scores_as_the_trained_network(kind, tmp_path):
    given = made(kind)
    card = exported(tmp_path, given)
    assert card == load_card(tmp_path / "card.yaml")
    assert verify_weights(card, tmp_path / "model.safetensors") == card.weights.sha256
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    pixels = detector.prepare(picture())[None]
    expected = score_in_torch(given.network, given.card.output, detector, pixels)
    assert detector.score(pixels)[0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("kind", ["vit", "siglip"])
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_exported_files_have_the_mode_of_the_umask(kind, mask, tmp_path):
    given = made(kind)
    with umask(mask) as mode:
        exported(tmp_path, given)
    assert modes_in(tmp_path) == {mode}


def test_card_names_what_was_trained_on_what(tmp_path):
    given = made(
        "vit",
        title="A small ViT",
        source="a paper",
        departures=("bf16 instead of fp16",),
        data={
            "name": "pictures",
            "licence": "CC BY 4.0",
            "train": [{"at": "s3://key:secret@bucket/pictures"}],
        },
        initial={"start": "random"},
        export={"notes": ["of the reader's own"]},
    )
    card = exported(tmp_path, given)
    text = (tmp_path / "card.yaml").read_text()
    assert (card.name, card.title) == ("small-vit", "A small ViT")
    assert card.source == "touchstone train small-vit"
    assert "a paper" in card.citation
    assert card.calibration == given.facts.calibration
    assert yaml.safe_load(text)["calibration"] == {"slope": 1.5, "intercept": -0.25}
    for field in ("architecture", "preprocessing", "output"):
        assert getattr(card, field) == getattr(given.card, field)
    data = card.training_data
    assert (data.name, data.licence) == ("pictures", "CC BY 4.0")
    assert data.images == "2,500: 1,200 real, 1,300 fake"
    assert (data.generators, data.complete) == (("sdxl", "flux"), True)
    assert "secret" not in text
    assert (card.golden, card.variants, card.precision_note) == ((), {}, None)
    assert not card.demonstration
    assert "of the reader's own" in card.notes
    assert "Departs from its source: bf16 instead of fp16" in card.notes
    [training] = [note for note in card.notes if "50 steps of 8 images" in note]
    assert "step 40" in training
    assert torch.__version__ in training
    parameters = sum(parameter.numel() for parameter in given.network.parameters())
    assert card.size.parameters == parameters


@pytest.mark.parametrize(
    ("before", "train", "validation", "said"),
    [
        # A fine-tune also saw what the weights before it saw, and sources that only one of both
        # names are not all.
        (
            {"generators": ("progan", "sdxl"), "complete": False},
            {"sdxl": 1, "flux": 1},
            {},
            (("progan", "sdxl", "flux"), (), False),
        ),
        (
            {"generators": ("progan",)},
            {"real:phone": 2, "sdxl": 3},
            {},
            (("progan", "sdxl"), ("phone",), False),
        ),
        (
            {"generators": ("a",), "sources": ("camera",)},
            {"real:phone": 2, "sdxl": 3},
            {},
            (("a", "sdxl"), ("camera", "phone"), True),
        ),
        # Sources that were chosen by stand there too, generators that were only chosen by do not;
        # `real` is of no known source.
        (
            None,
            {"real:camera": 1, "sdxl": 3},
            {"real:phone": 2, "flux": 1},
            (("sdxl",), ("camera", "phone"), True),
        ),
        (None, {"real:camera": 1, "real": 1, "sdxl": 3}, {}, (("sdxl",), ("camera",), False)),
        (None, {"real:camera": 2, "unknown": 1, "lora": 2}, {}, (("lora",), ("camera",), False)),
    ],
)
def test_card_lists_what_was_seen_and_if_that_is_all(before, train, validation, said, tmp_path):
    given = made("residual", initial={"start": "card" if before else "random"})
    if before:
        known = {"sources": (), "complete": True} | before
        data = given.card.training_data.model_copy(update=known)
        given = given._replace(card=given.card.model_copy(update={"training_data": data}))
    splits = {"train": train} | ({"validation": validation} if validation else {})
    data = data_of_export(tmp_path, given, splits)
    assert (data.generators, data.sources, data.complete) == said


def test_card_keeps_names_with_wildcards_as_words(tmp_path):
    seen = {"real:camera [1]": 2, "lora [v2]*": 2}
    data = data_of_export(tmp_path, made("residual"), {"train": seen})
    assert is_named("camera [1]", data.sources[0])
    assert is_named("lora [v2]*", data.generators[0])
    assert not is_named("lora v", data.generators[0])


def test_card_has_each_figure_with_interval_and_n(tmp_path):
    given = made("residual", data={"name": "pictures"})
    card = exported(tmp_path, given)
    source = "touchstone train small-residual"
    assert all(figure.verified and figure.source == source for figure in card.published)
    found = {(figure.set, figure.metric): figure for figure in card.published}
    auc, test = found["pictures, test", "AUC"], given.facts.test
    assert (auc.value, auc.n) == (round(test.auc, 4), 40)
    low, high = test.auc_interval
    assert auc.note == f"95 % interval {low:.3f} to {high:.3f}"
    rate = found["pictures, test, flux", "TPR at 0"]
    assert (rate.value, rate.n) == (round(test.generators["flux"].tpr, 4), 10)
    assert found["pictures, test, real", "TNR at 0"].n == 20
    assert "chosen on it" in found["pictures, validation", "AUC"].note
    assert ("pictures, validation, flux", "TPR at 0") not in found


def test_card_without_test_split_has_figures_of_validation(tmp_path):
    card = exported(tmp_path, made("residual", test=False, calibration=False))
    assert any(figure.set.endswith("validation, flux") for figure in card.published)
    assert not any(", test" in figure.set for figure in card.published)
    assert card.calibration is None
    assert not any("Calibrated" in note for note in card.notes)


def test_card_is_a_demonstration_only_by_its_recipe(tmp_path):
    fine_tuned = made("residual", initial={"start": "card"})
    assert fine_tuned.card.demonstration
    assert not exported(tmp_path, fine_tuned).demonstration
    card = {"preprocessing": {"center_crop": 32}, "demonstration": True}
    assert exported(tmp_path, made("residual", card=card)).demonstration


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"resize": {"mode": "squash", "size": 32}, "center_crop": None, "filter": "bicubic"},
        {"resize": {"mode": "short_side", "size": 37}, "center_crop": 32},
    ],
)
def test_timm_loads_the_exported_folder_alone(preprocessing, tmp_path):
    given = made("vit", card=VIT | {"preprocessing": preprocessing})
    exported(tmp_path, given)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    image = picture(3, 91, 70)
    with torch.no_grad():
        logit = model(transform(image)[None])[0, 0].item()
    assert model.pretrained_cfg["label_names"] == ["fake"]
    assert logit == pytest.approx(float(detector.score(detector.prepare(image)[None])[0]), abs=2e-3)


@pytest.mark.parametrize("kind", ["swin", "siglip", "hf-vit"])
def test_transformers_pipeline_gives_the_same_probability(kind, tmp_path):
    """transformers 5 writes ViT's keys under the names of its earlier versions."""
    given = made(kind)
    card = exported(tmp_path, given)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config["id2label"][str(index)] for index in range(2)] == list(card.output.labels)
    assert config["label2id"] == {label: index for index, label in enumerate(card.output.labels)}
    assert card.weights.config == "config.json"
    has_own_names = (
        load_file(tmp_path / "model.safetensors").keys() == given.network.state_dict().keys()
    )
    assert has_own_names == (kind != "hf-vit")
    _, info = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    classify = transformers.pipeline(
        "image-classification", model=str(tmp_path), device="cpu", dtype=torch.float32
    )
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    for seed, size in enumerate([(91, 70), (20, 300)]):
        image = picture(seed, *size)
        score = float(detector.score(detector.prepare(image)[None])[0])
        by_label = {answer["label"].casefold(): answer["score"] for answer in classify(image)}
        assert by_label["fake"] == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-4)
        assert by_label["fake"] + by_label["real"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("maskclip", {}),
        ("residual", {}),
        ("vit", {"resize": {"mode": "squash", "size": 32, "thumbnail_first": 64}}),
    ],
)
def test_no_processor_is_written_for_other_preprocessing(kind, change):
    preprocessing = training_card(recipe(kind)).preprocessing
    changed = preprocessing.model_validate(preprocessing.model_dump() | change)
    assert make_processor_config(changed) is None


@pytest.mark.parametrize("name", ["community-forensics-vits384", "touchstone-tiny"])
def test_size_of_a_network_is_that_of_its_card(name):
    card = load_card(name)
    assert measure_size(card) == card.size


def test_size_of_a_network_that_needs_values_is_unknown():
    assert measure_size(training_card(recipe("maskclip"))) is None


def test_export_rejects_the_network_of_another_card(tmp_path):
    shorter = SIGLIP | {"architecture": {"arguments": {"vision_config": {"num_hidden_layers": 1}}}}
    given, other = made("siglip"), made("siglip", card=shorter)
    with pytest.raises(DetectorError, match="do not fit"):
        exported(tmp_path, given._replace(network=other.network))
    assert not list(tmp_path.iterdir())


def test_exported_backbone_is_a_file_that_travels_along(tmp_path):
    (tmp_path / "source").mkdir()
    _, path = small_card(tmp_path / "source")
    trained = recipe("vit").model_copy(update={"detector": str(path), "card": {}})
    card, network = training_card(trained), load_detector(path, precision="fp32").network
    given = made("vit")._replace(recipe=trained, card=card, network=network)
    other = copy.deepcopy(network)
    other.backbone.proj.data += 1
    with pytest.raises(
        DetectorError,
        match=r"1 tensors of the exported files differ from the trained network \(backbone\.proj",
    ):
        exported(tmp_path / "other", given._replace(network=other))
    exported(tmp_path / "out", given)
    assert set(load_file(tmp_path / "out/model.safetensors")) == {"fc.weight", "fc.bias"}
    shutil.rmtree(tmp_path / "source")
    detector = load_detector(tmp_path / "out/card.yaml", precision="fp32")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network(detector.normalise(torch.from_numpy(pixels)))[:, 0].numpy()
    np.testing.assert_allclose(detector.score(pixels), expected, atol=1e-5)


def test_export_to_a_bucket_scores_from_there(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    given, out = made("siglip"), s3.bucket("exported") + "/runs/siglip"
    export(Store.open(out), *given)
    detector = load_detector(f"{out}/card.yaml", precision="fp32")
    pixels = detector.prepare(picture())[None]
    expected = score_in_torch(given.network, given.card.output, detector, pixels)
    assert detector.score(pixels)[0] == pytest.approx(expected, abs=1e-5)
    fetched = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert fetched == {"model.safetensors", "config.json"}


NC = "CC BY-NC 4.0"


@pytest.mark.parametrize(
    ("kind", "start", "licences", "licence", "terms", "noted"),
    [
        ("vit", "card", {"data": "CC BY 4.0"}, "MIT", "permissive", ""),
        ("vit", "card", {"data": NC}, NC, "non-commercial", ""),
        ("vit", "card", {"data": "none stated"}, "none stated", "none-stated", ""),
        ("vit", "random", {"data": "CC BY 4.0"}, "CC BY 4.0", "permissive", ""),
        ("vit", "random", {}, "not stated", "permissive", "not stated"),
        ("vit", "pretrained", {"weights": NC, "data": "MIT"}, NC, "non-commercial", ""),
        ("vit", "pretrained", {"data": "MIT"}, "MIT", "permissive", ""),
        # What is not permissive stays so. A licence that the recipe states is noted with the
        # licence that it replaces.
        ("swin", "card", {"data": "MIT"}, "CC-BY-NC-4.0", "non-commercial", "MIT"),
        ("maskclip", "card", {"data": "MIT"}, "none stated", "none-stated", "MIT"),
        (
            "swin",
            "card",
            {"stated": "Research use only"},
            "Research use only",
            "research-only",
            "CC-BY-NC-4.0",
        ),
    ],
)
def test_stricter_licence_is_inherited(kind, start, licences, licence, terms, noted):
    initial = {"start": start, "licence": licences.get("weights")}
    if start == "pretrained":
        initial["weights"] = {"network": {"uri": "x.safetensors", "unverified": "a test"}}
    given = recipe(
        kind,
        initial=initial,
        data={"licence": licences.get("data")},
        export={"licence": licences.get("stated")},
    )
    found = inherit_licence(given, training_card(given))
    assert (found.licence, found.terms) == (licence, terms)
    assert noted in (found.note or "")
