"""Simulated camera images and their repainted twins, for tests, benchmarks, and the shipped sample
archive.
"""
