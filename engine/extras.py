"""How to install what an optional part of the product needs."""


def install(extra: str) -> str:
    """The command that installs `extra`; the product is on no package index."""
    return f"pip install '.[{extra}]' in the folder of its source"
