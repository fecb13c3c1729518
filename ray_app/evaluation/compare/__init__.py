"""What changed from one run to another: images, statuses, verdicts, scores and, with labels, how
good they are. No Ray, no torch.
"""
