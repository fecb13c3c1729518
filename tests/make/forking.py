"""Run a function in a forked process."""

import multiprocessing


def run_in_fork(call, timeout_s=60.0):
    """Return the value of `call()` in a forked process; fail after `timeout_s` seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(call()))
    process.start()
    try:
        assert receiver.poll(timeout_s), "the forked process does not answer"
        return receiver.recv()
    finally:
        process.kill()
        process.join()
