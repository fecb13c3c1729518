"""The way of one image stays as short as it is."""

from benchmarks.way import Recorder, block_way, ensemble_way, photograph

MOST = {"load_ensemble().score": (92, 20), "block to committed part": (127, 26)}  # functions, files


def test_one_image_walks_no_further(tmp_path):
    picture = photograph(tmp_path)
    with Recorder().installed() as recorder:
        ways = [ensemble_way(recorder, picture), block_way(recorder, picture, tmp_path)]
    for way in ways:
        functions, files = MOST[way.name]
        figures = way.figures()
        assert 0 < figures["functions"] <= functions, way.listed()
        assert 0 < figures["files"] <= files, way.listed()
