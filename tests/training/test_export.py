"""What a training hands out: a card and weights that Touchstone, timm and transformers take as they
are.
"""

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
from ray_app.training.export import MOST_GENERATORS, card_figures, export, inherited, terms_of
from ray_app.training.networks import training_card
from ray_app.training.weight_files import processor_config, size_of
from tests.detectors.small_clip import small_card
from tests.training.made import figures, made, picture
from tests.training.small_recipes import SIGLIP, VIT, recipe


def test_masks_have_figures_of_their_own_and_thousands_of_generators_do_not_fill_a_card():
    measured = figures(3) | {"pixel_f1": 0.5, "pixel_iou": 0.25, "n": 7}
    found = {
        figure.metric: figure for figure in card_figures(Figures.from_dict(measured), "x", "y")
    }
    assert (found["pixel F1"].value, found["pixel F1"].n, found["pixel IoU"].value) == (
        0.5,
        7,
        0.25,
    )
    many = figures(3, generators=[f"g{index}" for index in range(20)])
    assert len(card_figures(Figures.from_dict(many), "x", "y")) > 40
    many["generators"] |= {
        f"h{index}": many["generators"]["g0"] for index in range(MOST_GENERATORS)
    }
    assert not any("g0" in figure.set for figure in card_figures(Figures.from_dict(many), "x", "y"))


def exported(tmp_path, given):
    return export(Store.open(str(tmp_path)), *given)


@pytest.mark.parametrize("kind", ["vit", "residual", "swin", "siglip", "maskclip"])
def test_what_is_exported_scores_as_what_was_trained(kind, tmp_path):
    given = made(kind)
    card = exported(tmp_path, given)
    assert card == load_card(tmp_path / "card.yaml")
    assert verify_weights(card, tmp_path / "model.safetensors") == card.weights.sha256
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    pixels = detector.prepare(picture())[None]
    with torch.no_grad():
        answer = given.network(detector.normalise(torch.from_numpy(pixels)))
    logits = answer if isinstance(answer, torch.Tensor) else answer.logits
    fake = (
        given.card.output.index_among(given.card.output.labels)
        if given.card.output.sign is None
        else None
    )
    expected = (
        logits[0, 0] * given.card.output.sign
        if fake is None
        else logits[0, fake] - logits[0, 1 - fake]
    )
    assert detector.score(pixels)[0] == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected.item()) > 1e-3


def test_the_card_tells_what_was_trained_and_measured(tmp_path):
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
    assert (card.name, card.title, card.source) == (
        "small-vit",
        "A small ViT",
        "touchstone train small-vit",
    )
    assert card.calibration == given.facts.calibration
    assert yaml.safe_load((tmp_path / "card.yaml").read_text())["calibration"] == {
        "slope": 1.5,
        "intercept": -0.25,
    }
    assert (card.architecture, card.preprocessing, card.output) == (
        given.card.architecture,
        given.card.preprocessing,
        given.card.output,
    )
    assert (card.training_data.name, card.training_data.licence) == ("pictures", "CC BY 4.0")
    assert card.training_data.images == "2,500: 1,200 real, 1,300 fake"
    assert (card.training_data.generators, card.training_data.complete) == (("sdxl", "flux"), True)
    assert "secret" not in (tmp_path / "card.yaml").read_text()
    assert (card.golden, card.variants, card.precision_note, card.demonstration) == (
        (),
        {},
        None,
        False,
    )
    assert {"of the reader's own", "Departs from its source: bf16 instead of fp16"} <= set(
        card.notes
    )
    assert any(
        "50 steps of 8 images" in note and "step 40" in note and torch.__version__ in note
        for note in card.notes
    )
    assert card.size.parameters == sum(
        parameter.numel() for parameter in given.network.parameters()
    )
    assert "a paper" in card.citation


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
def test_what_was_seen_stands_on_the_card_and_whether_that_is_all(
    before, train, validation, said, tmp_path
):
    given = made("residual", initial={"start": "card" if before else "random"})
    if before:
        known = given.card.training_data.model_copy(
            update={"sources": (), "complete": True} | before
        )
        given = given._replace(card=given.card.model_copy(update={"training_data": known}))
    splits = {
        name: {"real": 2, "fake": 3, "generators": seen}
        for name, seen in (("train", train), ("validation", validation))
        if seen
    }
    data = exported(
        tmp_path, given._replace(facts=TrainingFacts.from_dict({"data": {"splits": splits}}))
    ).training_data
    assert (data.generators, data.sources, data.complete) == said


def test_names_with_wildcards_are_kept_as_words(tmp_path):
    findings = {
        "splits": {
            "train": {"real": 2, "fake": 2, "generators": {"real:camera [1]": 2, "lora [v2]*": 2}}
        }
    }
    data = exported(
        tmp_path, made("residual")._replace(facts=TrainingFacts.from_dict({"data": findings}))
    ).training_data
    assert is_named("camera [1]", data.sources[0])
    assert is_named("lora [v2]*", data.generators[0])
    assert not is_named("lora v", data.generators[0])


def test_every_figure_is_there_with_its_interval_and_its_n(tmp_path):
    given = made("residual", data={"name": "pictures"})
    card = exported(tmp_path, given)
    assert all(
        figure.verified and figure.source == "touchstone train small-residual"
        for figure in card.published
    )
    found = {(figure.set, figure.metric): figure for figure in card.published}
    auc = found["pictures, test", "AUC"]
    low, high = given.facts.test.auc_interval
    assert (auc.value, auc.n) == (round(given.facts.test.auc, 4), 40)
    assert auc.note == f"95 % interval {low:.3f} to {high:.3f}"
    rate = found["pictures, test, flux", "TPR at 0"]
    assert (rate.value, rate.n) == (round(given.facts.test.generators["flux"].tpr, 4), 10)
    assert found["pictures, test, real", "TNR at 0"].n == 20
    assert "chosen on it" in found["pictures, validation", "AUC"].note
    assert ("pictures, validation, flux", "TPR at 0") not in found


def test_without_a_test_split_the_generators_are_those_of_validation(tmp_path):
    card = exported(tmp_path, made("residual", test=False, calibration=False))
    assert any(figure.set.endswith("validation, flux") for figure in card.published)
    assert not any(", test" in figure.set for figure in card.published)
    assert card.calibration is None
    assert not any("Calibrated" in note for note in card.notes)


def test_a_demonstration_is_what_a_recipe_calls_so_and_no_fine_tune_of_one(tmp_path):
    given = made("residual", initial={"start": "card"})
    assert given.card.demonstration
    assert not exported(tmp_path, given).demonstration
    assert exported(
        tmp_path,
        made("residual", card={"preprocessing": {"center_crop": 32}, "demonstration": True}),
    ).demonstration


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"resize": {"mode": "squash", "size": 32}, "center_crop": None, "filter": "bicubic"},
        {"resize": {"mode": "short_side", "size": 37}, "center_crop": 32},
    ],
)
def test_timm_builds_and_prepares_from_the_folder_alone(preprocessing, tmp_path):
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
    """transformers 5 writes ViT's keys under the names of its earlier versions: both readers have
    to know.
    """
    given = made(kind)
    card = exported(tmp_path, given)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config["id2label"][str(index)] for index in range(2)] == list(card.output.labels)
    assert config["label2id"] == {label: index for index, label in enumerate(card.output.labels)}
    assert card.weights.config == "config.json"
    assert (
        load_file(tmp_path / "model.safetensors").keys() == given.network.state_dict().keys()
    ) == (kind != "hf-vit")
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


def test_preprocessing_that_transformers_cannot_do_is_not_promised():
    for kind, change in [
        ("maskclip", {}),
        ("residual", {}),
        ("vit", {"resize": {"mode": "squash", "size": 32, "thumbnail_first": 64}}),
    ]:
        given = recipe(kind)
        card = training_card(given)
        preprocessing = card.preprocessing.model_validate(card.preprocessing.model_dump() | change)
        assert processor_config(preprocessing) is None, kind


@pytest.mark.parametrize("name", ["community-forensics-vits384", "touchstone-tiny"])
def test_size_is_that_of_the_shipped_cards_and_none_where_a_network_does_not_run_without_values(
    name,
):
    card = load_card(name)
    assert size_of(card) == card.size
    assert size_of(training_card(recipe("maskclip"))) is None


def test_the_network_of_another_card_is_refused_and_nothing_is_written(tmp_path):
    shorter = SIGLIP | {"architecture": {"arguments": {"vision_config": {"num_hidden_layers": 1}}}}
    given, other = made("siglip"), made("siglip", card=shorter)
    with pytest.raises(DetectorError, match="do not fit"):
        exported(tmp_path, given._replace(network=other.network))
    assert not list(tmp_path.iterdir())


def test_a_backbone_stays_a_file_of_its_own(tmp_path):
    """And travels along: the exported folder needs nothing of where the training began."""
    (tmp_path / "source").mkdir()
    _, path = small_card(tmp_path / "source")
    trained = recipe("vit").model_copy(update={"detector": str(path), "card": {}})
    card, network = training_card(trained), load_detector(path, precision="fp32").network
    given = made("vit")._replace(recipe=trained, card=card, network=network)
    other = copy.deepcopy(network)
    other.backbone.proj.data += 1
    with pytest.raises(
        DetectorError, match=r"not what was trained: 1 tensors differ \(backbone\.proj"
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


def test_a_shipped_backbone_is_named(tmp_path):
    from ray_app.training.export import _backbone

    assert _backbone(load_card("unifd").backbone, tmp_path) == "openai-clip-vit-l14"
    assert not list(tmp_path.iterdir())


def test_what_is_exported_to_a_bucket_scores_from_there(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    given, out = made("siglip"), s3.bucket("exported") + "/runs/siglip"
    export(Store.open(out), *given)
    detector = load_detector(f"{out}/card.yaml", precision="fp32")
    pixels = detector.prepare(picture())[None]
    with torch.no_grad():
        logits = given.network(detector.normalise(torch.from_numpy(pixels)))[0]
    assert detector.score(pixels)[0] == pytest.approx((logits[0] - logits[1]).item(), abs=1e-5)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "model.safetensors",
        "config.json",
    }


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("MIT", "permissive"),
        ("CC BY-SA 4.0", "permissive"),
        ("CC-BY-NC-SA-4.0", "non-commercial"),
        ("CC BY 4.0 (full set); CC BY-NC-SA 4.0 (Small)", "non-commercial"),
        ("Research use only", "research-only"),
        ("none stated", "none-stated"),
        ("", "none-stated"),
        ("Terms of the agency", "restricted"),
        ("Synchrotron licence", "restricted"),
    ],
)
def test_terms_are_told_by_the_licences_name(licence, terms):
    assert terms_of(licence) == terms


@pytest.mark.parametrize(
    ("kind", "start", "weights_licence", "data_licence", "stated", "found", "noted"),
    [
        ("vit", "card", None, "CC BY 4.0", None, ("MIT", "permissive"), ""),
        ("vit", "card", None, "CC BY-NC 4.0", None, ("CC BY-NC 4.0", "non-commercial"), ""),
        ("vit", "card", None, "none stated", None, ("none stated", "none-stated"), ""),
        ("vit", "random", None, "CC BY 4.0", None, ("CC BY 4.0", "permissive"), ""),
        ("vit", "random", None, None, None, ("not stated", "permissive"), "not stated"),
        ("vit", "pretrained", "CC BY-NC 4.0", "MIT", None, ("CC BY-NC 4.0", "non-commercial"), ""),
        ("vit", "pretrained", None, "MIT", None, ("MIT", "permissive"), ""),
        # What is not permissive is never made so; a licence that the recipe states stands with what
        # it replaces.
        ("swin", "card", None, "MIT", None, ("CC-BY-NC-4.0", "non-commercial"), "MIT"),
        ("maskclip", "card", None, "MIT", None, ("none stated", "none-stated"), "MIT"),
        (
            "swin",
            "card",
            None,
            None,
            "Research use only",
            ("Research use only", "research-only"),
            "CC-BY-NC-4.0",
        ),
    ],
)
def test_the_stricter_of_weights_and_data_is_inherited(
    kind, start, weights_licence, data_licence, stated, found, noted
):
    weights = (
        {"network": {"uri": "x.safetensors", "unverified": "a test"}}
        if start == "pretrained"
        else {}
    )
    initial = {"start": start, "weights": weights, "licence": weights_licence}
    given = recipe(
        kind, initial=initial, data={"licence": data_licence}, export={"licence": stated}
    )
    terms = inherited(given, training_card(given))
    assert (terms.licence, terms.terms) == found
    assert noted in (terms.note or "")
