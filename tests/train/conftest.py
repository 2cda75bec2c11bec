from tests.training_parts import data, images, line, paper, parts, source, split

__all__ = ["data", "images", "line", "paper", "parts", "source", "split"]
