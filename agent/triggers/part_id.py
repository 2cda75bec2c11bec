"""Part ids and counts as trigger sources bring them: texts and numbers of somebody else."""

from typing import Final

PART_ID_MAX: Final = 128
"""Characters; a longer id is none."""
_COUNT_MAX: Final = (1 << 63) - 1


def as_part_id(value: object) -> str | None:
    """The part id in a text or a number, without spaces around it; `None` where there is none.

    What is too long, or has characters that cannot be printed, is no id: a part without an id is
    seen by everybody, a wrong one by nobody.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).strip(" \t\r\n\0")
    return text if text.isprintable() and 0 < len(text) <= PART_ID_MAX else None


def as_count(value: object) -> int | None:
    """The count in a number or in decimal digits; `None` where there is none."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        value = int(value) if len(value) < 20 else -1
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= _COUNT_MAX else None
