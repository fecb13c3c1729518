"""Define augmentation policies, which change training images at random."""
