from tests.training_parts import data, images, line, nearest, paper, parts, quick, source, split

__all__ = ["data", "images", "line", "nearest", "paper", "parts", "quick", "source", "split"]
