import io

from ray_app.cluster.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_rate_counts_from_the_first_result_of_this_command():
    clock = Clock()
    progress = Progress(300, stream=io.StringIO(), clock=clock)
    clock.now = 100.0  # start-up
    progress.advance(100, 1)
    clock.now = 110.0
    progress.advance(100, 2)
    assert progress.line(clock.now) == "score  200/300 (67%)  10.0 img/s  ETA 10.0 s  no score 3"
    progress = Progress(300, done=100, stream=io.StringIO(), clock=clock)
    progress.advance(50, 0)
    clock.now += 5.0
    progress.advance(50, 0)
    assert progress.line(clock.now) == "score  200/300 (67%)  10.0 img/s  ETA 10.0 s  no score 0"


def test_rate_is_that_of_the_last_minutes():
    """Half of the nodes were taken away: the time that is left is no longer what all of them would
    have needed.
    """
    clock = Clock()
    progress = Progress(100_000, stream=io.StringIO(), clock=clock)
    for second in range(1200):
        clock.now += 1.0
        progress.advance(20 if second < 600 else 10, 0)
    assert (
        progress.line(clock.now)
        == "score  18,000/100,000 (18%)  10.0 img/s  ETA 2 h 16 min  no score 0"
    )
    clock.now += 100.0  # nothing ends
    assert "7.5 img/s" in progress.line(clock.now)


def test_terminal_gets_one_rewritten_line_and_no_note():
    for stream, notes in ((io.StringIO(), 2), (Terminal(), 0)):
        clock = Clock()
        progress = Progress(100, note=lambda: "bound by storage", stream=stream, clock=clock)
        for clock.now in (60.0, 119.0, 120.0):
            progress.advance(10, 0)
        progress.close()
        assert stream.getvalue().count("  bound by storage\n") == notes
        assert stream.getvalue().count("\r\x1b[K") == (0 if notes else 4)
    assert stream.getvalue().count("\n") == 1
