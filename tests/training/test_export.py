"""What a training hands out: a card and weights that Touchstone, timm and transformers take as they are."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from ray_app.detectors import load_card, load_detector, verify_weights
from ray_app.detectors.detector import build_network
from ray_app.errors import DetectorError
from ray_app.evaluation.systems import is_named
from ray_app.storage import Store
from ray_app.training.export import MOST_GENERATORS, STRICTNESS, card_figures, export, inherited, terms_of
from ray_app.training.networks import training_card
from ray_app.training.weight_files import processor_config, size_of
from tests.training.made import figures, made, picture
from tests.training.small_recipes import MASKCLIP, SIGLIP, VIT, recipe


def test_thousands_of_generators_do_not_fill_a_card():
    many = figures(3, generators=[f"g{index}" for index in range(20)])
    assert len(card_figures(many, "x", "y")) > 40
    many["generators"] |= {f"h{index}": many["generators"]["g0"] for index in range(MOST_GENERATORS)}
    assert not any("g0" in figure.set for figure in card_figures(many, "x", "y"))


def test_masks_have_figures_of_their_own():
    measured = figures(3) | {"pixel_f1": 0.5, "pixel_iou": 0.25, "n": 7}
    found = {figure.metric: figure for figure in card_figures(measured, "x", "y")}
    assert (found["pixel F1"].value, found["pixel F1"].n, found["pixel IoU"].value) == (0.5, 7, 0.25)


KINDS = ["vit", "residual", "swin", "siglip", "maskclip"]


def exported(tmp_path, given):
    return export(Store.open(str(tmp_path)), given)


@pytest.mark.parametrize("kind", KINDS)
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
    fake = given.card.output.index_among(given.card.output.labels) if given.card.output.sign is None else None
    expected = logits[0, 0] * given.card.output.sign if fake is None else logits[0, fake] - logits[0, 1 - fake]
    assert detector.score(pixels)[0] == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected.item()) > 1e-3


def test_the_card_tells_what_was_trained_and_measured(tmp_path):
    given = made(
        "vit",
        title="A small ViT",
        source="a paper",
        departures=("bf16 instead of fp16",),
        data={"name": "pictures", "licence": "CC BY 4.0", "train": [{"at": "s3://key:secret@bucket/pictures"}]},
        initial={"start": "random"},
        export={"notes": ["of the reader's own"]},
    )
    card = exported(tmp_path, given)
    assert (card.name, card.title, card.source) == ("small-vit", "A small ViT", "touchstone train small-vit")
    assert card.calibration == given.calibration
    assert yaml.safe_load((tmp_path / "card.yaml").read_text())["calibration"] == {"slope": 1.5, "intercept": -0.25}
    assert (card.architecture, card.preprocessing, card.output) == (given.card.architecture, given.card.preprocessing, given.card.output)
    assert (card.training_data.name, card.training_data.licence) == ("pictures", "CC BY 4.0")
    assert card.training_data.images == "2,500: 1,200 real, 1,300 fake"
    assert (card.training_data.generators, card.training_data.complete) == (("sdxl", "flux"), True)
    assert "secret" not in (tmp_path / "card.yaml").read_text()
    assert (card.golden, card.variants, card.precision_note, card.demonstration) == ((), {}, None, False)
    assert {"of the reader's own", "Departs from its source: bf16 instead of fp16"} <= set(card.notes)
    assert any("50 steps of 8 images" in note and "step 40" in note and torch.__version__ in note for note in card.notes)
    assert card.size.parameters == sum(parameter.numel() for parameter in given.network.parameters())
    assert "a paper" in card.citation


def test_a_fine_tune_also_saw_what_the_weights_before_it_saw(tmp_path):
    given = made("residual", initial={"start": "card"})
    before = given.card.training_data.model_copy(update={"generators": ("progan", "sdxl"), "complete": False})
    card = exported(tmp_path, dataclasses.replace(given, card=given.card.model_copy(update={"training_data": before})))
    assert (card.training_data.generators, card.training_data.complete) == (("progan", "sdxl", "flux"), False)


def test_sources_of_real_images_that_were_learned_from_or_chosen_by_stand_on_the_card(tmp_path):
    given = made("residual")
    findings = {
        "splits": {
            "train": {"real": 2, "fake": 3, "generators": {"real:camera [1]": 1, "real": 1, "sdxl": 3}},
            "validation": {"real": 2, "fake": 1, "generators": {"real:phone": 2, "flux": 1}},
        }
    }
    data = exported(tmp_path, dataclasses.replace(given, findings=findings)).training_data
    assert data.generators == ("sdxl",)
    assert [is_named(name, glob) for name, glob in zip(("camera [1]", "phone"), data.sources, strict=True)] == [True, True]
    assert not data.complete, "of one real image nobody knows the source"


def test_a_fine_tune_on_named_sources_of_weights_with_unknown_ones_does_not_say_that_these_are_all(tmp_path):
    given = made("residual", initial={"start": "card"})
    findings = {"splits": {"train": {"real": 2, "fake": 3, "generators": {"real:phone": 2, "sdxl": 3}}}}
    for known, complete in (((), False), (("camera",), True)):
        update = {"generators": ("progan",), "sources": known, "complete": True}
        card = given.card.model_copy(update={"training_data": given.card.training_data.model_copy(update=update)})
        folder = tmp_path / str(complete)
        folder.mkdir()
        data = exported(folder, dataclasses.replace(given, card=card, findings=findings)).training_data
        assert (data.generators, data.sources, data.complete) == (("progan", "sdxl"), (*known, "phone"), complete)


def test_fakes_of_an_unknown_maker_leave_the_list_incomplete(tmp_path):
    given = made("residual")
    findings = {"splits": {"train": {"real": 2, "fake": 3, "generators": {"real": 2, "unknown": 1, "lora [v2]*": 2}}}}
    data = exported(tmp_path, dataclasses.replace(given, findings=findings)).training_data
    assert not data.complete
    assert len(data.generators) == 1
    assert is_named("lora [v2]*", data.generators[0])
    assert not is_named("lora v", data.generators[0])


def test_every_figure_is_there_with_its_interval_and_its_n(tmp_path):
    given = made("residual", data={"name": "pictures"})
    card = exported(tmp_path, given)
    assert all(figure.verified and figure.source == "touchstone train small-residual" for figure in card.published)
    found = {(figure.set, figure.metric): figure for figure in card.published}
    auc = found["pictures, test", "AUC"]
    low, high = given.test["auc_interval"]
    assert (auc.value, auc.n) == (round(given.test["auc"], 4), 40)
    assert auc.note == f"95 % interval {low:.3f} to {high:.3f}"
    rate = found["pictures, test, flux", "TPR at 0"]
    assert (rate.value, rate.n) == (round(given.test["generators"]["flux"]["tpr"], 4), 10)
    assert found["pictures, test, real", "TNR at 0"].n == 20
    assert "chosen on it" in found["pictures, validation", "AUC"].note
    assert ("pictures, validation, flux", "TPR at 0") not in found


def test_without_a_test_split_the_generators_are_those_of_validation(tmp_path):
    card = exported(tmp_path, made("residual", test=False, calibration=False))
    assert any(figure.set.endswith("validation, flux") for figure in card.published)
    assert not any(", test" in figure.set for figure in card.published)
    assert card.calibration is None
    assert not any("Calibrated" in note for note in card.notes)


def test_a_fine_tune_of_the_demonstration_detector_is_none_itself(tmp_path):
    given = made("residual", initial={"start": "card"})
    assert given.card.demonstration
    assert not exported(tmp_path, given).demonstration


def test_a_recipe_that_makes_a_demonstration_says_so(tmp_path):
    given = made("residual", card={"preprocessing": {"center_crop": 32}, "demonstration": True})
    assert exported(tmp_path, given).demonstration


def test_timm_loads_the_file_unchanged(tmp_path):
    given = made("vit")
    card = exported(tmp_path, given)
    model = timm.create_model(
        card.architecture.name, num_classes=1, checkpoint_path=str(tmp_path / "model.safetensors"), **card.architecture.arguments
    ).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), given.network(pixels))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())


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
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    image = picture(3, 91, 70)
    with torch.no_grad():
        logit = model(transform(image)[None])[0, 0].item()
    assert model.pretrained_cfg["label_names"] == ["fake"]
    assert logit == pytest.approx(float(detector.score(detector.prepare(image)[None])[0]), abs=2e-3)


@pytest.mark.parametrize("kind", ["swin", "siglip"])
def test_transformers_pipeline_gives_the_same_probability(kind, tmp_path):
    given = made(kind)
    card = exported(tmp_path, given)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config["id2label"][str(index)] for index in range(2)] == list(card.output.labels)
    assert config["label2id"] == {label: index for index, label in enumerate(card.output.labels)}
    assert card.weights.config == "config.json"
    classify = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu", dtype=torch.float32)
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    for seed, size in enumerate([(90, 70), (32, 32), (20, 300)]):
        image = picture(seed, *size)
        score = float(detector.score(detector.prepare(image)[None])[0])
        by_label = {answer["label"].casefold(): answer["score"] for answer in classify(image)}
        assert by_label["fake"] == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-4)
        assert by_label["fake"] + by_label["real"] == pytest.approx(1)


def test_a_vision_transformer_in_published_names_comes_back_in_its_own(tmp_path):
    """transformers 5 writes ViT's keys under the names of its earlier versions: both readers have to know."""
    given = made("hf-vit")
    exported(tmp_path, given)
    assert load_file(tmp_path / "model.safetensors").keys() != given.network.state_dict().keys()
    loaded = load_detector(tmp_path / "card.yaml", precision="fp32").network.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in given.network.state_dict().items())
    _, info = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    classify = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu", dtype=torch.float32)
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    image = picture(1, 91, 70)
    score = float(detector.score(detector.prepare(image)[None])[0])
    assert {answer["label"]: answer["score"] for answer in classify(image)}["Fake"] == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-4)


def test_preprocessing_that_transformers_cannot_do_is_not_promised():
    for kind, change in [("maskclip", {}), ("residual", {}), ("vit", {"resize": {"mode": "squash", "size": 32, "thumbnail_first": 64}})]:
        given = recipe(kind)
        card = training_card(given)
        preprocessing = card.preprocessing.model_validate(card.preprocessing.model_dump() | change)
        assert processor_config(preprocessing) is None, kind


@pytest.mark.parametrize("kind", ["vit", "swin", "siglip", "residual"])
def test_size_is_that_of_the_network(kind):
    card = training_card(recipe(kind))
    network = build_network(card)
    size = size_of(card)
    assert size.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert size.tensors == len(network.state_dict())


@pytest.mark.parametrize(
    "name",
    [
        "community-forensics-vits384",
        pytest.param("openfake-swinv2-small", marks=pytest.mark.slow),
        "siglip2-open-deepfake",
        "touchstone-tiny",
    ],
)
def test_multiply_adds_are_those_of_the_shipped_cards(name):
    card = load_card(name)
    assert size_of(card) == card.size


def test_a_network_that_does_not_run_without_values_has_no_size(tmp_path):
    assert size_of(training_card(recipe("maskclip", card=MASKCLIP))) is None


def test_the_network_of_another_card_is_refused_and_nothing_is_written(tmp_path):
    given, other = (
        made("siglip"),
        made("siglip", card=SIGLIP | {"architecture": {"arguments": {"vision_config": {"num_hidden_layers": 1}}}}),
    )
    with pytest.raises(DetectorError, match="do not fit"):
        exported(tmp_path, dataclasses.replace(given, network=other.network))
    assert not list(tmp_path.iterdir())


def test_a_backbone_stays_a_file_of_its_own(tmp_path):
    from benchmarks.seeded import write_weights

    source = tmp_path / "source"
    source.mkdir()
    vision = {"image_size": 28, "patch_size": 14, "width": 64, "layers": 2, "heads": 2, "embed_dim": 16, "quick_gelu": True}
    backbone = {
        "name": "small-clip",
        "title": "small",
        "architecture": {"name": "vit", "arguments": vision},
        "licence": "MIT",
        "source": "here",
    }
    backbone["weights"] = {"uri": "small-clip.safetensors", "unverified": "of this test"}
    (source / "small-clip.yaml").write_text(yaml.safe_dump(backbone))
    facts = yaml.safe_load(
        yaml.safe_dump(load_card("unifd").model_dump(mode="json", exclude={"backbone", "variants", "size"}, exclude_none=True))
    )
    facts |= {"backbone": "small-clip.yaml", "preprocessing": {"center_crop": 28}}
    (source / "unifd.yaml").write_text(yaml.safe_dump(facts))
    write_weights(source / "small-clip.safetensors", build_network(load_card(source / "unifd.yaml")).backbone.state_dict())

    recipe_facts = {"detector": str(source / "unifd.yaml"), "card": {"variants": None}}
    trained = recipe("vit").model_copy(update=recipe_facts)
    card = training_card(trained)
    network = build_network(card)
    network.backbone.load_state_dict(load_file(source / "small-clip.safetensors"))
    out = tmp_path / "out"
    given = dataclasses.replace(made("vit"), recipe=trained, card=card, network=network)
    other = build_network(card)
    other.load_state_dict(network.state_dict() | {"backbone.proj": network.backbone.proj + 1})
    with pytest.raises(DetectorError, match=r"not what was trained: 1 tensors differ \(backbone\.proj"):
        exported(tmp_path / "other", dataclasses.replace(given, network=other))
    export(Store.open(str(out)), given)
    assert set(load_file(out / "model.safetensors")) == {"fc.weight", "fc.bias"}
    for path in (source / "small-clip.safetensors", source / "small-clip.yaml"):
        path.unlink()
    detector = load_detector(out / "card.yaml", precision="fp32")
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
    export(Store.open(out), given)
    detector = load_detector(f"{out}/card.yaml", precision="fp32")
    pixels = detector.prepare(picture())[None]
    with torch.no_grad():
        logits = given.network(detector.normalise(torch.from_numpy(pixels)))[0]
    assert detector.score(pixels)[0] == pytest.approx((logits[0] - logits[1]).item(), abs=1e-5)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"model.safetensors", "config.json"}


@pytest.mark.slow
@pytest.mark.ci
def test_touchstone_score_takes_the_card_with_nothing_else(tmp_path):
    exported(tmp_path / "out", made("residual"))
    archive = tmp_path / "pictures"
    archive.mkdir()
    for seed in range(3):
        picture(seed).save(archive / f"{seed}.png")
    command = [sys.executable, "-m", "ray_app.cli.main", "score", str(archive), "--detector", str(tmp_path / "out" / "card.yaml")]
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "scores").glob("*.parquet"))


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("MIT", "permissive"),
        ("Apache-2.0", "permissive"),
        ("CC BY 4.0", "permissive"),
        ("CC BY-SA 4.0", "permissive"),
        ("CC BY-NC 4.0", "non-commercial"),
        ("CC-BY-NC-SA-4.0", "non-commercial"),
        ("CC BY 4.0 (full set); CC BY-NC-SA 4.0 (Small)", "non-commercial"),
        ("Research use only", "research-only"),
        ("none stated", "none-stated"),
        ("not stated", "none-stated"),
        ("unknown", "none-stated"),
        ("", "none-stated"),
        ("Terms of the agency", "restricted"),
        ("Synchrotron licence", "restricted"),
    ],
)
def test_terms_are_told_by_the_licences_name(licence, terms):
    assert terms_of(licence) == terms


@pytest.mark.parametrize(
    ("start", "weights_licence", "data_licence", "licence", "terms"),
    [
        ("card", None, "CC BY 4.0", "MIT", "permissive"),
        ("card", None, "CC BY-NC 4.0", "CC BY-NC 4.0", "non-commercial"),
        ("card", None, "none stated", "none stated", "none-stated"),
        ("random", None, "CC BY 4.0", "CC BY 4.0", "permissive"),
        ("random", None, None, "not stated", "permissive"),
        ("pretrained", "CC BY-NC 4.0", "MIT", "CC BY-NC 4.0", "non-commercial"),
        ("pretrained", None, "MIT", "MIT", "permissive"),
    ],
)
def test_the_stricter_of_weights_and_data_is_inherited(start, weights_licence, data_licence, licence, terms):
    weights = {"network": {"uri": "x.safetensors", "unverified": "a test"}} if start == "pretrained" else {}
    given = recipe("vit", initial={"start": start, "weights": weights, "licence": weights_licence}, data={"licence": data_licence})
    found = inherited(given, training_card(given))
    assert (found.licence, found.terms) == (licence, terms)
    assert data_licence is not None or "not stated" in found.note


def test_what_is_not_permissive_is_never_made_so():
    for terms, licence in [("non-commercial", "CC-BY-NC-4.0"), ("none-stated", "none stated")]:
        kind = {"non-commercial": "swin", "none-stated": "maskclip"}[terms]
        given = recipe(kind, initial={"start": "card"}, data={"licence": "MIT"})
        found = inherited(given, training_card(given))
        assert (found.licence, found.terms) == (licence, terms)
        assert "MIT" in found.note
    assert list(STRICTNESS) == ["permissive", "restricted", "non-commercial", "research-only", "none-stated"]


def test_a_licence_that_the_recipe_states_stands_with_what_it_replaces():
    given = recipe("swin", initial={"start": "card"}, export={"licence": "Research use only"})
    found = inherited(given, training_card(given))
    assert (found.licence, found.terms) == ("Research use only", "research-only")
    assert "CC-BY-NC-4.0" in found.note
