"""From scores of good parts to a threshold with a stated promise."""
