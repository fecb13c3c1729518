"""Run a user's Python callables as detectors, each in a child process of its own.

The module `process` starts the child process, and `child` is the program that it executes.
"""
