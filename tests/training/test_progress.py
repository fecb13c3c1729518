"""The one line that says how far a training is."""

import io

from ray_app.training.board import Board, Told
from ray_app.training.progress import TrainingProgress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_line_says_step_loss_rate_and_what_is_left():
    clock, stream = Clock(), io.StringIO()
    progress = TrainingProgress(100, stream=stream, clock=clock)
    assert progress.line(0.0) == "train  starting workers"
    progress.show(Told({"step": 9, "loss": 0.7, "rate": 1e-3, "images_per_s": 50.0}, steps=10))
    clock.now = 10.0
    progress.judged("auc 0.9100 at 15")
    progress.show(Told({"step": 19, "loss": 0.5, "rate": 1e-3, "images_per_s": 80.0}, steps=20))
    assert progress.line(10.0) == "train  step 20/100 (20%)  loss 0.5000  rate 1.00e-03  80.0 img/s  ETA 1 min 20 s  auc 0.9100 at 15"


def test_a_resumed_training_counts_from_where_it_goes_on():
    clock = Clock()
    progress = TrainingProgress(100, stream=io.StringIO(), clock=clock)
    progress.show(Told({"step": 59}, steps=1))
    clock.now = 10.0
    progress.show(Told({"step": 69}, steps=11))
    assert "step 70/100 (70%)" in progress.line(10.0)
    assert "ETA 30.0 s" in progress.line(10.0)


def test_the_board_keeps_the_first_failure_and_passes_the_wish_on():
    board = Board()
    assert board.tell({"step": 1}, 1) is False
    board.fail(b"late", only_before_steps=True)
    assert board.read() == Told({"step": 1}, steps=1)
    board.fail(b"first")
    board.fail(b"second")
    assert board.read().failure == b"first"
    board.stop()
    assert board.tell({"step": 2}, 1) is True
    board.beat()
    assert (board.read().steps, board.read().beats) == (2, 1)
