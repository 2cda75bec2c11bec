"""One small example for each port; docs/extending.md shows them all."""
