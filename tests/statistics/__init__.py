"""What is promised of errors, simulated: tests draw data whose truth is known, ask the product, and
count how often it is wrong.
"""
