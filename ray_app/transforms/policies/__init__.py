"""The augmentation policies of recipes."""
