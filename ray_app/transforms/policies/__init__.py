"""The augmentation policies of the papers, a module each, imported when a recipe names it."""
