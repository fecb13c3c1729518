"""Stream items, such as blocks of images, through pools of Ray actors.

A pool is a number of processes that run the same `Stage`, one step of the work.
`pool.stream(items, pools)` passes each item through one pool after another, on Ray Data. For
training, `pool.dataset` returns such a pipeline as a Ray dataset. Each worker of Ray Train has a
dataset of its own, and reads the results with `pool.messages`. `worker_pool.map_in_pool` applies a
function to items that are produced while others are processed.
"""
