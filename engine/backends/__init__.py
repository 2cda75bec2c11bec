"""Runtimes that run a bundle's network, one module each; `base` says what one must do."""
