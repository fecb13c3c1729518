"""Stream items, such as blocks of images, through pools of Ray actors.

A pool is a number of processes that run the same `Stage`, one step of the work. Start at
`pool.stream(items, pools)`, with which Ray Data passes each item through one pool after another.
For training, `pool.dataset` builds such a pipeline for Ray Train, whose workers read the results
with `pool.messages`. `worker_pool.map_in_pool` applies a function to items that are produced while
others are processed.
"""
