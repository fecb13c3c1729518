"""Stream items through pools of Ray actors.

Start at `pool.stream(items, pools)`, with which Ray Data passes each item through one `Stage` after
another. Training passes a `pool.dataset` to Ray Train instead, and reads its `pool.messages` there.
`worker_pool.map_in_pool` applies a function to items that are produced while others are processed.
"""
