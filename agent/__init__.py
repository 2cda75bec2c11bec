"""The running agent: wiring, input and output, and time."""
