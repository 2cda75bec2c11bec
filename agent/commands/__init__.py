"""One module per command of `agent`; each imports what it needs when it runs."""
