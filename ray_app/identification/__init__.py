"""Who made an image and from what words: known generators, heads that name them, models that
predict prompts.
"""
