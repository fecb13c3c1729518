"""Transform images before a network sees them.

Perturbations imitate what happens to images after they are published. Augmentation policies change
training images; most are taken from papers.
"""
