"""Identify the generator of an image and predict its prompt.

The modules define the index of known generators, heads that name a generator, and models that
predict prompts.
"""
