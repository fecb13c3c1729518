from benchmarks.scoring import _left_out


def test_a_contender_that_cannot_run_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name, **_: None)
    left_out = _left_out(["daft_guide", "limit"], tmp_path)
    assert list(left_out) == ["daft_guide"]
    assert "daft_guide is left out: uv is not installed" in capsys.readouterr().err
