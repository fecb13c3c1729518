import re
import shlex
from functools import cache

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, f1_score

from ray_app.cli.evaluate import evaluate
from ray_app.config import named_configs
from ray_app.datasets.layouts import make_layout
from ray_app.detectors import card
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.evaluation import protocols
from ray_app.evaluation.protocol_rows import CONVENTIONS
from ray_app.metrics.registry import DETECTION, oracle_accuracy
from ray_app.reports.evaluation.result import GeneratorInfo
from tests.evaluation.counted import system_from
from tests.metrics import drawn

load_protocol, load_card = cache(protocols.load_protocol), cache(card.load_card)


def test_f1_by_source_is_the_mean_of_each_source():
    """Brute force: each source is a data set of its own, with scikit-learn's F1, and they are
    averaged by images.
    """
    sources = [("real", 95, 100), ("fake", 30, 40), ("fake", 60, 60)]
    parts = []
    for label, right, n in sources:
        truth = np.full(n, label == "fake")
        said = np.where(np.arange(n) < right, truth, ~truth)
        parts.append((n, f1_score(truth, said, zero_division=0.0)))
    expected = sum(n * f1 for n, f1 in parts) / sum(n for n, _ in parts)
    assert convention("f1_by_source", *sources) == pytest.approx(expected, abs=1e-12)
    assert convention("f1_by_source", ("real", 100, 100)) == 0.0


def convention(name, *sources):
    system = system_from("d", {f"g-{place}": one for place, one in enumerate(sources)})
    return CONVENTIONS[name](system.scores, system.measured.info.generators).value


def test_the_oracle_threshold_is_the_best_of_the_grid():
    rng, truth = np.random.default_rng(0), np.arange(500) < 300
    scores = rng.normal(np.where(truth, 1, -1), np.where(truth, 2, 1)).astype(np.float32)
    chances = 1 / (1 + np.exp(-scores.astype(np.float64)))
    best = max(accuracy_score(truth, chances > point) for point in np.linspace(0, 1, 100))
    found = oracle_accuracy(drawn.images(scores[truth], scores[~truth]))
    assert found == pytest.approx(best, abs=1e-12)
    assert best >= accuracy_score(truth, chances > 0.5)


def test_undefined_convention_has_a_reason():
    system = system_from("d", {"g": ("fake", 1, 2)})
    for found in (
        CONVENTIONS["f1_by_source"](system.scores, []),
        CONVENTIONS["accuracy_missing_wrong"](system.scores, []),
        CONVENTIONS["false_positive_rate"](system.scores, system.measured.info.generators),
    ):
        assert found.value is None
        assert found.why


ASKED_FOR = {
    "openfake-v1", "openfake-v2", "openfake-v2-reddit", "openfake-imagen3", "openfake-sd21", "opensdi", "dflip", "dflip-v1",
    "community-forensics", "open-deepfake", "sidbench",
}  # fmt: skip
PROTOCOLS = [load_protocol(path) for path in named_configs("evaluate").values()]
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda one: one.name)


def column(protocol, name):
    [found] = [one for one in load_protocol(protocol).reference if one.column == name]
    return found


def test_each_protocol_has_its_name():
    assert {one.name for one in PROTOCOLS} >= ASKED_FOR
    assert all(load_protocol(name).name == name for name in named_configs("evaluate"))


@each_protocol
def test_protocol_names_existing_detectors_and_metrics(protocol):
    if protocol.layout:
        make_layout(protocol.layout, protocol.arguments)
    published = [one.detector for one in protocol.reference if one.detector]
    for detector in (*protocol.detectors, *published):
        assert load_card(detector).name == detector
    if protocol.ensemble:
        assert load_ensemble_card(protocol.ensemble).name == protocol.ensemble
    assert set(protocol.perturb) <= named_configs("perturb").keys()
    for footer in protocol.footers:
        way, _, figure = footer.figure.partition(":")
        known = {*DETECTION, "tpr_mean", "tpr_weighted", *CONVENTIONS}
        is_mean = way in ("mean", "weighted") and figure
        assert way in known or way.startswith("report.") or is_mean, footer


@each_protocol
def test_each_published_cell_has_a_row_and_is_a_share(protocol):
    assert protocol.reference or any("no published column" in note for note in protocol.notes)
    places = {one.name for one in (*protocol.rows, *protocol.footers)}
    for one in protocol.reference:
        assert one.rows
        assert one.rows.keys() <= places
        assert one.marks.keys() <= one.rows.keys()
        assert all(0 <= value <= 1 for value in one.rows.values())
        assert one.source


# The folders in GenImage's archives, as GenImage_LIST of beibuwandeluori/DRCT has them.
GENIMAGE = (
    "imagenet_ai_0419_sdv4", "imagenet_ai_0424_sdv5", "imagenet_midjourney", "imagenet_ai_0508_adm", "imagenet_ai_0424_wukong",
    "imagenet_glide", "imagenet_ai_0419_vqdm", "imagenet_ai_0419_biggan",
)  # fmt: skip


@pytest.mark.parametrize("name", ["genimage", "forensichub-genimage", "ai-genbench"])
def test_each_published_generator_has_one_row(name):
    rows = load_protocol(name).rows
    names = GENIMAGE if name != "ai-genbench" else [name for row in rows for name in row.generators]
    facts = [GeneratorInfo(name=one, label="fake", n=1) for one in names]
    assert [sum(row.matches(one) for row in rows) for one in facts] == [1] * len(names)
    sizes = [4] * 9 if name == "ai-genbench" else [1] * 8
    assert [sum(row.matches(one) for one in facts) for row in rows] == sizes


@each_protocol
def test_command_of_protocol_is_valid(protocol):
    assert protocol.commands
    for command in protocol.commands:
        words = shlex.split(command)
        assert words[:2] == ["touchstone", "evaluate"]
        assert "--out" in words
        assert words[words.index("--protocol") + 1] == protocol.name
        detector = words[words.index("--detector") + 1]
        assert detector in protocol.detectors or not protocol.detectors
        assert set(protocol.sources) <= set(words)
        assert evaluate.make_context("evaluate", words[2:]).params["protocol"] == protocol.name


def figures_of_card(detector):
    return {(one.set, one.metric): one.value for one in load_card(detector).published}


def test_card_of_maskclip_equals_its_protocol():
    card, ours = figures_of_card("maskclip"), column("opensdi", "MaskCLIP").rows
    names = {f"{maker}, ": maker for maker in ("SD1.5", "SD2.1", "SDXL", "SD3", "Flux.1")}
    for row, words in (names | {"mean ": "mean of the five"}).items():
        for metric in ("pixel IoU", "pixel F1", "F1", "accuracy"):
            assert card[f"OpenSDI test, {words}", metric] == ours[f"{row}{metric}"]


def test_card_of_cnndetection_equals_its_protocol():
    shorts = {"average precision": "AP", "accuracy at 0.5": "accuracy"}
    card = {
        f"{name.removeprefix('CNNDetection test, ')}, {shorts[metric]}": value
        for (name, metric), value in figures_of_card("cnndetection").items()
    }
    assert card == load_protocol("cnndetection").reference[0].rows


@pytest.mark.parametrize(
    "detector",
    [
        "clip-d-10k-plus:thumb1024",
        "corvi2023:thumb1024",
        "internvl-prompt",
        "openfake-swinv2-small",
    ],
)
def test_card_of_openfake_column_equals_its_protocol(detector):
    references = load_protocol("openfake-v1").reference
    [ours] = [one.rows for one in references if one.detector == detector]
    card = figures_of_card(detector)
    for row in ("Ideogram 3.0", "GPT Image 1", "Flux 1.1-pro", "Flux 1.0-dev", "SD 3.5"):
        assert card[f"OpenFake v1 test, {row}", "TPR"] == ours[row]
    assert card["OpenFake v1 test, real", "TNR"] == ours["real"]
    assert card["OpenFake v1 test", "F1"] == ours["F1"]


ROW = {"name": "a", "generators": ["x"]}
REFERENCE = {"column": "c", "source": "s", "rows": {"b": 0.5}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": [ROW, {**ROW, "generators": ["y"]}]}, "duplicates: a"),
        ({"rows": [ROW], "reference": [REFERENCE]}, "unknown rows or footers: b"),
        ({"rowz": []}, "did you mean 'rows'"),
    ],
)
def test_protocol_that_contradicts_itself_is_refused(tmp_path, change, said):
    file = tmp_path / "mine.yaml"
    texts = {"name": "mine", "title": "t", "source": "s", "what": "w", "averages": "a"}
    file.write_text(yaml.safe_dump(texts | change))
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_protocol(file)


def test_unknown_protocol_is_rejected_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'opensdi'"):
        load_protocol("open-sdi")
