"""The variables of a PLC that the agent reads and writes: are they there, and do they fit?"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from asyncua import Client, Node, ua

from agent.plc.blocks import AgentBlock, PlcBlock

_INTEGERS: Final = frozenset(
    {"SByte", "Byte", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64"}
)
_OF_16_BITS: Final = _INTEGERS - {"SByte", "Byte", "Int16"}
_WANTED: Final = {
    **dict.fromkeys(("score", "threshold"), frozenset({"Int32", "Int64"})),
    **dict.fromkeys(("condition", "code", "held"), _INTEGERS),
}
_TYPES: Final = {bool: frozenset({"Boolean"}), str: frozenset({"String"}), int: _OF_16_BITS}
_USUAL: Final = {bool: ua.VariantType.Boolean, str: ua.VariantType.String}
_NAMED: Final = 3
"""Variables that do not fit and are named; the others are counted."""


class UnfitError(Exception):
    """A server or its variables cannot do; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One of a PLC: where, which Python type its value has, and which types of OPC UA can do."""

    node: Node
    kind: type
    types: frozenset[str]
    is_written: bool = False

    async def fitting(self) -> ua.VariantType:
        """What is written into it; raises `UnfitError` where it cannot be used."""
        name = self.node.nodeid.to_string()
        try:
            found = await self.node.read_data_type_as_variant_type()
            levels = await self.node.get_user_access_level()
        except ua.UaStatusCodeError as error:
            raise UnfitError(f"{name} is not there ({_code(error)})") from None
        if found is ua.VariantType.Variant:  # takes what it is given
            found = _USUAL.get(self.kind, ua.VariantType.Int32)
        if found.name not in self.types:
            can_do = " or ".join(sorted(self.types, key=lambda each: (len(each), each)))
            raise UnfitError(f"{name} is {found.name}, and should be {can_do}")
        wanted = ua.AccessLevel.CurrentWrite if self.is_written else ua.AccessLevel.CurrentRead
        if wanted not in levels:
            done = "written" if self.is_written else "read"
            raise UnfitError(f"{name} may not be {done} by the agent")
        return found


def node_name(field: str) -> str:
    """How a field of a block is called among a PLC's variables: `part_id` is `PartId`."""
    return "".join(part.capitalize() for part in field.split("_"))


def of_block(
    client: Client, block: AgentBlock | PlcBlock, template: str, *, is_written: bool
) -> dict[str, Variable]:
    """The variables of a block, by its fields.

    Args:
        client: Is, or will be, connected to the PLC.
        block: Any of its kind.
        template: The node ids, with `{name}`.
        is_written: Whether it is the agent that writes them.
    """
    found = {}
    for each in fields(block):
        value = getattr(block, each.name)
        kind = next(kind for kind in (bool, int, str) if isinstance(value, kind))
        node = client.get_node(template.replace("{name}", node_name(each.name)))
        types = _WANTED.get(each.name, _TYPES[kind])
        found[each.name] = Variable(node, kind, types, is_written)
    return found


def of_trigger(client: Client, nodes: Mapping[str, str | None]) -> dict[str, Variable]:
    """Those of a trigger that are configured: `count`, `id` and `product`."""
    wanted = {"count": _INTEGERS, "id": _TYPES[str], "product": _INTEGERS | _TYPES[str]}
    return {
        name: Variable(client.get_node(node), int if name == "count" else str, wanted[name])
        for name, node in nodes.items()
        if node is not None
    }


async def fitting(variables: Mapping[str, Variable]) -> dict[str, ua.VariantType]:
    """The type of each; raises `UnfitError` that names those which cannot be used."""
    found, unfit = {}, []
    for name, variable in variables.items():
        try:
            found[name] = await variable.fitting()
        except UnfitError as error:
            unfit.append(str(error))
    if unfit:
        more = len(unfit) - _NAMED
        named = "; ".join(unfit[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise UnfitError(f"the PLC's variables do not fit: {named}")
    return found


def _code(error: ua.UaStatusCodeError) -> str:
    return type(error).__name__
