"""Stream items through pools of Ray actors.

Start at `pool.stream(items, pools)`: Ray Data passes each item through one `Stage` after another.
Training hands a `pool.dataset` to Ray Train instead, and reads its `pool.messages` there.
`worker_pool.map_in_pool` applies a function to items that come as others finish.
"""
