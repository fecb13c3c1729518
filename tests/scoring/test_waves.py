"""Which blocks go into which wave, also when the cluster has become smaller. Ray's part is played by a plain loop."""

from types import SimpleNamespace

from ray_app.scoring import engine
from ray_app.scoring.messages import BlockReport, BlockWork


def test_a_smaller_cluster_goes_on_with_all_that_a_lost_wave_left(monkeypatch):
    blocks = [SimpleNamespace(manifest=0, block=number) for number in range(5000)]
    layouts = iter([SimpleNamespace(workers=12), *[SimpleNamespace(workers=1)] * 9])
    waves = []

    def executed(wave, job, planned):
        waves.append(list(wave))
        # The first wave of 3,600 is handed back but for its first ten blocks; a later one may be no larger than 2,000 by itself.
        for ref in waves[-1][: 10 if len(waves) == 1 else None]:
            yield BlockReport(ref, 0, BlockWork())

    monkeypatch.setattr(engine, "_prepare", lambda: None)
    monkeypatch.setattr(engine, "_executed", executed)
    quiet = SimpleNamespace(reason=None, progressed=lambda: None)
    reported = [report.ref.block for report in engine.score_blocks(blocks, None, lambda: next(layouts), stopper=quiet, watch=quiet)]
    assert sorted(reported) == list(range(5000))
    assert [len(wave) for wave in waves] == [3600, 3590, 1400]
