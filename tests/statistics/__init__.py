"""What is promised of errors, simulated: every test draws data whose truth is known, asks the product, and counts how often it was wrong."""
