from ray_app.runs import differences, fingerprint

ONE = {
    "source": ["/a"],
    "detectors": {"tiny": {"weights": "abc", "preprocessing": {"size": 256}}},
    "thresholds": {"fake_above": 1.0},
}


def changed(**leaves):
    return {**ONE, **leaves}


def test_a_difference_names_the_leaf_and_both_sides():
    assert differences(ONE, {**ONE}) == []
    assert differences(changed(thresholds={"fake_above": 2.0}), ONE) == [
        "thresholds.fake_above: this command 2.0, the run 1.0"
    ]


def test_another_detector_is_seen_from_both_sides():
    other = changed(detectors={"other": {"weights": "def"}})
    assert differences(other, ONE) == [
        'detectors.other.weights: this command "def", the run has none',
        'detectors.tiny.weights: this command has none, the run "abc"',
        "detectors.tiny.preprocessing.size: this command has none, the run 256",
    ]


def test_fingerprint_ignores_the_order_of_keys():
    assert fingerprint(ONE) == fingerprint(dict(reversed(ONE.items())))
    assert fingerprint(ONE) != fingerprint(changed(source=["/b"]))
