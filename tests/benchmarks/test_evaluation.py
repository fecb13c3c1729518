from benchmarks.evaluation import GENERATORS, measure, synthetic, write_labels, write_run


def test_synthetic_rows_are_evaluated(tmp_path):
    rows = 20 * GENERATORS * 2
    write_run(tmp_path / "run", synthetic(rows))
    write_labels(tmp_path / "labels.parquet", rows)
    found = measure(tmp_path)
    assert found["rows"] == rows
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 0
