"""Run a user's Python callables as detectors, each in a child process of its own.

A callable is a function or object that returns scores for a batch of images. The module `process`
starts the child process, and `child` is the program that it executes. `addition` adds a callable to
the user's detectors.
"""
