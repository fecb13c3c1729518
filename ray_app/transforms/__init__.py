"""What is done to pictures before a network sees them: perturbations of the world, and the
augmentation policies of the papers.
"""
