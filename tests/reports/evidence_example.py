"""Records as `touchstone runs evidence` writes them, made of the shipped cards and rows that the test says."""

from ray_app.detectors.card import Platt
from ray_app.ensembles import EnsembleCard, Guarantee, Population, load_ensemble_card
from ray_app.evaluation.evidence.record import Grounds, decide_again, digest, sections, spec_of
from ray_app.images import ImageLimits
from ray_app.inference.spec import make_spec

PROVENANCE = {
    "camera": {"make": "Canon", "model": "EOS 7D", "taken": "2024:05:06 07:08:09"},
    "software": "Adobe Photoshop 25.0",
    "generator": {"tool": "Stable Diffusion web UI", "prompt": "a cat on a chair", "model": "sd_xl_base_1.0"},
    "c2pa": {"state": "intact", "claim_generator": "Adobe_Firefly", "ai_generated": True, "source_types": ["trainedAlgorithmicMedia"]},
    "ai_declared": True,
}
POPULATION = Population(what="press photographs and fakes of 12 generators", prevalence=0.5, parts=(), generators=("flux", "sdxl"))
GUARANTEE = Guarantee(target_fpr=0.01, n_real=5000, false_positives=37, upper_bound=0.00977, references_sha256="c" * 64)
KINDS = {
    "plain": {},
    "promised": {"score": 2.2, "promised": True},
    "shifted": {"score": 3.0, "promised": True, "run": {"holds": False, "why": "images differ in jpeg_quality (PSI 0.15)"}},
    "abstained": {"score": 0.1, "promised": True},
    "real": {"score": -6.0},
    "far": {"score": 400.0, "promised": True},
    "unscored": {"score": None},
    "cascade": {"score": 1.0, "ensemble": "cascade"},
    "stable": {"score": 2.0, "views": 5},
    "many": {"score": 1.0, "ensemble": "published"},
}


def example_evidence(*, score=2.0, promised=False, run=None, ensemble="tiny", views=0):
    """A record with its digest; `score` of every detector, None = the image was not scored."""
    card = _card(ensemble, promised=promised)
    spec = make_spec(card, limits=ImageLimits(), precision="fp32")
    identity = {
        "source": ["s3://bucket/photos"],
        "limits": spec.limits.model_dump(mode="json"),
        "detectors": {name: {"weights": "d" * 64, **one.scoring_facts} for name, one in spec.cards.items()},
        "precision": dict(spec.precision),
        "resize": "exact",
        "batch_slots": 4,
    }
    facts = {"url": "s3://bucket/run", "created_at": "2026-11-21T12:00:00+00:00", "finished_at": None, "schema": 4}
    facts |= {"touchstone": "0.7.0", "members": 5000, "verdicts": {"fake": 12}, "identity": identity}
    grounds = Grounds(
        spec_of(card, spec.cards, identity), card.model_dump(mode="json"),
        {name: one.model_dump(mode="json") for name, one in spec.cards.items()}, _row(spec, score, views), facts, run,
    )  # fmt: skip
    made_by = {"touchstone": "0.7.0", "python": "3.11.7"}
    record = {"made_at": "2026-11-21T13:00:00+00:00", "made_by": made_by, "found_by": "uri", "cards_here_depart": {}, **sections(grounds)}
    return {"touchstone_evidence": 1, "sha256": digest(record), "record": record}


def _card(name, *, promised):
    card = load_ensemble_card("published" if name == "published" else "tiny")
    if name == "cascade":
        members = [{"detector": "touchstone-tiny"}, {"detector": "corvi2023"}]
        card = EnsembleCard(name="two", title="Two", members=members, rule="cascade", cascade={"first": 1, "band": (-2, 2)})
    if not promised:
        return card
    return card.model_copy(
        update={
            "calibration": Platt(slope=1.0, intercept=0.0),
            "guarantee": GUARANTEE,
            "population": POPULATION,
            "thresholds": card.thresholds,
        }
    )


def _row(spec, score, views):
    scored = score is not None
    scores = {name: score + 0.3 * place for place, name in enumerate(spec.cards)} if scored else None
    row = {
        "image_id": -123, "uri": "s3://bucket/photos/2024/press/cat-on-a-chair.jpg", "member": None, "occurrence": 0,
        "status": "ok" if scored else "truncated_image", "detail": None if scored else "about 12 of 240 rows decoded",
        "sha256": "ab" * 32, "format": "JPEG", "width": 1024, "height": 768, "mode": "RGB", "frames": 1, "orientation": 1, "icc": True,
        "flags": ["trailing_bytes"], "decoder": "pillow 13.0.0/libjpeg-turbo 3.2.0", "quality": 87, "scores": scores,
        "provenance": None, "reused": False, "attempt": 1, "scored_at": "2026-11-21T12:30:00+00:00",
        **dict.fromkeys(("score", "probability", "calibrated", "verdict", "verdict_reason", "verdict_detail")),
    }  # fmt: skip
    if spec.ensemble.cascade is not None:
        row["second_look"] = None
    return row | decide_again(spec, row).row | ({"stability": [scores] * views} if views else {})
