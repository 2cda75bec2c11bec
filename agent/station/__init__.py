"""The station: parts of all cameras are inspected in turns, and every one is accounted for."""
