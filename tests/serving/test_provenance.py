"""The endpoint tells what files say of their origin, beside a score that is the same without it."""

from tests.images import factory
from tests.images.provenance.files import png_with
from tests.images.provenance.signing import signed, tampered
from tests.serving.in_process import client


def answered(http, data):
    answer = http.post("/v1/score", content=data)
    assert answer.status_code == 200
    return answer.json()


def test_signals_stand_beside_the_same_score(local):
    url, _ = local
    with client(url) as http:
        plain = answered(http, factory.jpeg())
        assert (plain["image"]["provenance"], plain["image"]["metadata"]) == (None, {})
        for data, state, declared in ((signed(), "intact", True), (tampered(signed()), "invalid", False)):
            answer = answered(http, data)
            said = answer["image"]["provenance"]
            assert (said["c2pa"]["state"], said["ai_declared"]) == (state, declared)
        same = ("score", "verdict", "probability")
        answer = answered(http, signed())
        assert {key: answer[key] for key in same} == {key: plain[key] for key in same}
        assert answer["image"]["metadata"] == {"c2pa": "intact; Throwaway 1; trainedAlgorithmicMedia"}
        said = answered(http, png_with(parameters="a cat\nSteps: 20, Sampler: Euler", Software="web ui"))["image"]
        assert (said["provenance"]["generator"]["sampler"], said["metadata"]["prompt"]) == ("Euler", "a cat")
