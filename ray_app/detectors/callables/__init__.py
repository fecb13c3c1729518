"""Run Python callables as detectors, each in a process (`process`) that executes `child`."""
