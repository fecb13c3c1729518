"""Ray Data as the one way in which images are streamed through pools of actors: items → `Stage`
after `Stage` → messages.

`pool.stream(items, pools)` is the whole of it; `feed.Feed` is a source that grows while it is read;
`feed.in_pool` applies a function that reads images. Training hands a `pool.dataset` to Ray Train
instead, and reads its `pool.messages` there.
"""
