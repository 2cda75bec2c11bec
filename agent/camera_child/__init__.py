"""A process beside the agent that touches files and decoders for one camera; it may hang or die.

agent ── what is wanted, as JSON ──▶ child: looks, reads, decodes
      ◀── pixels in shared memory, all else as JSON ──
"""
