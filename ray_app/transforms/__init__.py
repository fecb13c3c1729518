"""Transform images before a network sees them.

Perturbations imitate what happens to images in the world, and augmentation policies are those of
papers.
"""
