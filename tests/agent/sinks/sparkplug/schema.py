"""The schema of Sparkplug B's payloads for Google's protobuf, as far as the agent speaks it."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = descriptor_pb2.FieldDescriptorProto
_METRIC = {
    "name": (1, _TYPES.TYPE_STRING),
    "alias": (2, _TYPES.TYPE_UINT64),
    "timestamp": (3, _TYPES.TYPE_UINT64),
    "datatype": (4, _TYPES.TYPE_UINT32),
    "is_historical": (5, _TYPES.TYPE_BOOL),
    "is_transient": (6, _TYPES.TYPE_BOOL),
    "is_null": (7, _TYPES.TYPE_BOOL),
    "int_value": (10, _TYPES.TYPE_UINT32),
    "long_value": (11, _TYPES.TYPE_UINT64),
    "float_value": (12, _TYPES.TYPE_FLOAT),
    "double_value": (13, _TYPES.TYPE_DOUBLE),
    "boolean_value": (14, _TYPES.TYPE_BOOL),
    "string_value": (15, _TYPES.TYPE_STRING),
    "bytes_value": (16, _TYPES.TYPE_BYTES),
}


def payload_class():
    """A class whose messages are payloads."""
    file = descriptor_pb2.FileDescriptorProto(name="sparkplug.proto", syntax="proto2")
    payload, metric = file.message_type.add(name="Payload"), file.message_type.add(name="Metric")
    optional, repeated = _TYPES.LABEL_OPTIONAL, _TYPES.LABEL_REPEATED
    for name, (number, kind) in _METRIC.items():
        metric.field.add(name=name, number=number, type=kind, label=optional)
    payload.field.add(name="timestamp", number=1, type=_TYPES.TYPE_UINT64, label=optional)
    payload.field.add(
        name="metrics", number=2, type=_TYPES.TYPE_MESSAGE, label=repeated, type_name=".Metric"
    )
    payload.field.add(name="seq", number=3, type=_TYPES.TYPE_UINT64, label=optional)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Payload"))


Payload = payload_class()


def decoded(data: bytes):
    """What Google's protobuf makes of a payload."""
    payload = Payload()
    payload.ParseFromString(data)
    return payload


def command(name="Node Control/Rebirth", *, value=True) -> bytes:
    """What a host sends."""
    payload = Payload(timestamp=1)
    payload.metrics.add(name=name, timestamp=1, datatype=11, boolean_value=value)
    return payload.SerializeToString()
