"""Sweeps: a grid of tasks, methods and noise, run cell by cell, each once."""
