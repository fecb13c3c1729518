"""Measure how well the detectors of a scoring run separate real images from fakes.

An evaluation compares the scores of a run, which `touchstone score` wrote, with labels of the
images. It can follow a protocol, the rules by which a paper computed its table of results. The
result is metrics, a table, and an HTML page. Large runs are read on Ray. The entry point is
`ray_app.evaluation.run`.
"""
