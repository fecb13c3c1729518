"""Define the augmentation policies of training recipes."""
