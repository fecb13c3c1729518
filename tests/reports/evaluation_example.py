"""Results of evaluations as `touchstone evaluate` wrote them, of made-up scores.

`documents/evaluations.json.gz` has them by name, without pictures. Commit 4fe95c7e has the code that made the
scores.
"""

import base64
import gzip
import json
from dataclasses import replace
from functools import cache

from ray_app.reports.evaluation.result import EvaluationResult
from tests.reports.example import DOCUMENTS
from tests.reports.training_example import picture


@cache
def evaluation(name: str) -> EvaluationResult:
    """Return an evaluation.

    Args:
        name: `example` has four systems, ten generators and sources, and every section. `large` has
            nine systems and forty generators, more than a page can show at once. `only reals` and
            `only fakes` have one class, and most of their metrics are undefined.
    """
    documents = json.loads(gzip.decompress((DOCUMENTS / "evaluations.json.gz").read_bytes()))
    result = EvaluationResult.from_dict(documents[name])
    drawn = [base64.b64encode(picture(seed)).decode() for seed in range(16)]
    mistakes = zip(result.mistakes, drawn, strict=False)
    overlays = zip(result.overlays, drawn, strict=False)
    return replace(
        result,
        mistakes=tuple(replace(one, thumbnail=data) for one, data in mistakes),
        overlays=tuple(replace(one, picture=data) for one, data in overlays),
    )


def example_result() -> EvaluationResult:
    return evaluation("example")
