from ray_app.runs import differences, fingerprint

ONE = {
    "source": ["/a"],
    "detectors": {"tiny": {"weights": "abc", "preprocessing": {"size": 256}}},
    "thresholds": {"fake_above": 1.0},
}


def test_differences_name_the_leaf_and_both_sides():
    assert differences(ONE, {**ONE}) == []
    assert differences(ONE | {"thresholds": {"fake_above": 2.0}}, ONE) == [
        "thresholds.fake_above: this command 2.0, the run 1.0"
    ]
    assert differences(ONE | {"detectors": {"other": {"weights": "def"}}}, ONE) == [
        'detectors.other.weights: this command "def", the run has none',
        'detectors.tiny.weights: this command has none, the run "abc"',
        "detectors.tiny.preprocessing.size: this command has none, the run 256",
    ]


def test_fingerprint_ignores_the_order_of_keys():
    assert fingerprint(ONE) == fingerprint(dict(reversed(ONE.items())))
    assert fingerprint(ONE) != fingerprint(ONE | {"source": ["/b"]})
