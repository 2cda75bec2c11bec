"""Measurements: ratios taken side by side in one run, results committed with their machine."""
