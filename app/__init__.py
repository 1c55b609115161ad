"""Serves and composes: reads `generations/`, answers over HTTP and at the prompt, and publishes no artifact.

It is the one composition root: commands, configuration, jobs and web page wire the three packages below it.
"""
