"""The handshake with a PLC: its state machine, its registers, and what carries them."""
