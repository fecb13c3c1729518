"""Identify the generator of an image and predict its prompt.

A generator is a model that generates images, and the prompt is the text that it was given. The
modules define the index of known generators, identifiers (which predict the generator), and
describers (which predict the prompt).
"""
