"""One kind of class for everything that is written to or read from a file."""

from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def spec(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass whose values are checked when it is made.

    Unknown keys, NaN and infinities are refused; pydantic's `ValidationError` says where.
    """
    return dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)  # type: ignore[return-value]


class SchemaError(ValueError):
    """A file's content is of another schema; the message is a clause that says how.

    Args:
        reason: That clause.
        kind: What is wrong, as pydantic calls it; empty for a wrong version.
        place: The key at fault.
        found: The value there.
    """

    def __init__(
        self, reason: str, *, kind: str = "", place: str = "", found: object = None
    ) -> None:
        self.kind = kind
        self.place = place
        self.found = found
        super().__init__(reason)


def parse(adapter: TypeAdapter[T], data: bytes, *, version: int, noun: str) -> T:
    """The spec in JSON `data`.

    Args:
        adapter: of the spec's class.
        data: what a file holds.
        version: the `schema_version` that it should have.
        noun: what such a file is called: "manifest".

    Raises:
        SchemaError: it has another version, or is not valid.
    """
    try:
        found = TypeAdapter(dict[str, object]).validate_json(data).get("schema_version")
        if isinstance(found, int) and found > version:
            raise SchemaError(
                f"has schema version {found}, newer than {version}; update atac-agent"
            )
        if isinstance(found, int) and found < version:
            raise SchemaError(
                f"has schema version {found}, older than {version}, and is no longer read"
            )
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SchemaError(
            f"is not a valid {noun} ({place or 'JSON'}: {first['msg']})",
            kind=first["type"],
            place=place,
            found=first["input"],
        ) from error
