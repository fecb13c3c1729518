"""How good a run's scores are: joined with labels, by a paper's protocol, into figures, a table and
a page. Runs on Ray what is large.
"""
