"""What is measured: one script a contestant, run by its own environment's Python, told what to do by JSON lines."""
