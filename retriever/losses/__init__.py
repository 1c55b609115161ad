"""Losses, one idea a file: each reads similarity scores and masks, and gives the scalar to descend.

`contrastive.py` puts them together: positive term × negative term × weights × temperature.
"""
