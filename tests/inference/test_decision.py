"""From pixels to the name of a generator: embeddings of a detector that is asked anyway, its identifier's head, the columns of a row."""

import hashlib
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
import yaml
from safetensors.numpy import save_file

from ray_app.attribution.identifier import Identifier
from ray_app.detectors import load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.ensembles import EnsembleProfile, ensemble_of
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import BatchDecoder, StageClock, judge, make_spec
from ray_app.inference.scorer import EnsembleScorer
from ray_app.inference.second_pass import CascadeScorer
from ray_app.runs import result_rows
from tests.images import factory

TINY = "touchstone-tiny"
CLASSES = ["sd-1.5", "sdxl", "midjourney-6"]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identifier")
    facts = embedding_facts(load_card(TINY), precision="fp32", resize="exact")
    save_file({"weight": np.random.default_rng(0).normal(size=(3, facts["width"])).astype(np.float32)}, folder / "head.safetensors")
    digest = hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest()
    told = {
        "name": "mine", "title": "Mine", "weights": {"uri": "head.safetensors", "sha256": digest}, "licence": "mine", "source": "tests",
        "training_data": {"name": "drawn", "licence": "none"}, "detector": TINY, "embedding": facts, "classes": CLASSES,
    }  # fmt: skip
    (folder / "identifier.yaml").write_text(yaml.safe_dump(told))
    return folder / "identifier.yaml"


def spec_of(card, detector=TINY):
    ensemble = ensemble_of([detector]).model_copy(update={"profile": EnsembleProfile(identifier=str(card))})
    return make_spec(ensemble, limits=ImageLimits(), precision="fp32", slots=4)


def scored(spec, files):
    clock = StageClock()
    decoder = BatchDecoder(spec, clock)
    batches = [decoder.decode(files[start : start + 4]) for start in range(0, len(files), 4)]
    outputs = CascadeScorer(spec, EnsembleScorer(spec, clock), decoder, clock).score(iter(batches))
    return judge(spec, [outcome for batch in batches for outcome in batch.outcomes], outputs)


def test_rows_name_a_generator_its_family_and_the_nearest_others(card):
    spec = spec_of(card)
    files = [(number, factory.encoded(factory.photo(seed=number), "PNG")) for number in range(6)] + [(6, b"no image")]
    found = scored(spec, files)
    members = pa.table({"image_id": pa.array(range(7), pa.int64()), "uri": [f"{n}.png" for n in range(7)],
                        "member": pa.nulls(7, pa.string()), "occurrence": pa.array([0] * 7, pa.int32())})  # fmt: skip
    rows = result_rows(members, found, attempt=1, scored_at=datetime.now(UTC)).to_pylist()
    wanted = Identifier(spec.identifier).identify(found.outputs.of("embeddings")[TINY])
    for row, code, confidence in zip(rows[:6], wanted.codes, wanted.confidence, strict=False):
        assert row["predicted_generator"] == CLASSES[code] == row["generator_ranking"][0]
        assert row["generator_family"] == ("sd_1.5", "sdxl_1.0", "midjourney")[code]
        assert row["generator_confidence"] == pytest.approx(confidence)
        assert 1 / 3 < row["generator_probability"] <= 1
    names = ("predicted_generator", "generator_family", "generator_confidence", "generator_probability", "generator_ranking")
    assert [rows[6][name] for name in names] == [None] * 5
    plain = scored(make_spec(ensemble_of([TINY]), limits=ImageLimits(), precision="fp32", slots=4), files)
    np.testing.assert_array_equal(found.scores[TINY], plain.scores[TINY])
    assert plain.identified is None


def test_a_profile_of_a_detector_that_is_not_asked_is_refused(card):
    with pytest.raises(ConfigError, match="mine reads embeddings of touchstone-tiny, which does not look at every image here"):
        spec_of(card, "npr")
