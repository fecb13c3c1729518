"""Callables, in processes of their own: the program that runs there (`child`), and whoever starts
it (`process`).
"""
