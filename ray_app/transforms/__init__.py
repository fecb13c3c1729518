"""Transform images before a network sees them.

A perturbation imitates what happens to an image after it is published, such as JPEG compression. It
tests how robust a detector is. An augmentation policy changes training images at random; most
policies are taken from papers.
"""
