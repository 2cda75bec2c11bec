"""Our encoding against two others: Google's protobuf, and Tahu's own JavaScript."""

import base64
import json
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.sinks.sparkplug.payload import DataType, Metric, booleans, encoded
from tests.agent.sinks.sparkplug.schema import Payload, command, decoded

NODE = Path(__file__).parents[3] / "node"
FIELDS = {
    DataType.INT64: "long_value",
    DataType.DATETIME: "long_value",
    DataType.DOUBLE: "double_value",
    DataType.BOOLEAN: "boolean_value",
    DataType.STRING: "string_value",
}
VALUES = {
    DataType.INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    DataType.DATETIME: st.integers(0, (1 << 63) - 1),
    DataType.DOUBLE: st.floats(allow_nan=False),
    DataType.BOOLEAN: st.booleans(),
    DataType.STRING: st.text(st.characters(exclude_categories=["Cs"])),
}
METRICS = st.sampled_from(DataType).flatmap(
    lambda datatype: st.builds(
        Metric,
        name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        datatype=st.just(datatype),
        value=st.none() | VALUES[datatype],
        time_ms=st.integers(0, (1 << 63) - 1),
        is_historical=st.booleans(),
    )
)


def decoded_by_javascript(*payloads: bytes):
    """What the npm package `sparkplug-payload` makes of them."""
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules" / "sparkplug-payload").is_dir():
        pytest.skip("needs node and: npm install --prefix tests/node --no-package-lock")
    lines = "\n".join(base64.b64encode(each).decode() for each in payloads)
    done = subprocess.run(
        [node, NODE / "sparkplug.js"], input=lines, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@settings(max_examples=40)
@given(st.lists(METRICS, max_size=3), st.none() | st.integers(0, 255), st.booleans())
def test_google_s_protobuf_reads_what_we_write(metrics, seq, has_types):
    read = decoded(encoded(tuple(metrics), time_ms=1_764_000_000_123, seq=seq, has_types=has_types))
    assert read.timestamp == 1_764_000_000_123
    assert (read.seq if read.HasField("seq") else None) == seq
    assert len(read.metrics) == len(metrics)
    for told, metric in zip(read.metrics, metrics, strict=True):
        assert (told.name, told.timestamp) == (metric.name, metric.time_ms)
        assert told.HasField("datatype") == has_types
        assert told.is_historical == metric.is_historical
        assert told.is_null == (metric.value is None)
        present = {field.name for field, _ in told.ListFields()} & set(FIELDS.values())
        assert present == (set() if metric.value is None else {FIELDS[metric.datatype]})
        if metric.value is not None:
            value = getattr(told, FIELDS[metric.datatype])
            assert value == (metric.value % (1 << 64) if "long" in present.pop() else metric.value)


def test_tahu_s_javascript_reads_it_too_and_needs_the_types():
    metrics = (
        Metric(name="Count/OK", datatype=DataType.INT64, value=7, time_ms=5),
        Metric(name="Part/Score", datatype=DataType.DOUBLE, value=0.25, time_ms=5),
        Metric(name="Part/PartId", datatype=DataType.STRING, value="Teil-µ", time_ms=5),
        Metric(name="Part/OK", datatype=DataType.BOOLEAN, value=True, time_ms=5),
        Metric(name="Part/Reason", datatype=DataType.STRING, value=None, time_ms=5),
    )
    typed, untyped = decoded_by_javascript(
        *(encoded(metrics, time_ms=9, seq=3, has_types=has_types) for has_types in (True, False))
    )
    assert typed["timestamp"] == 9
    assert typed["seq"] == 3
    assert {each["name"]: each["value"] for each in typed["metrics"]} == {
        metric.name: metric.value for metric in metrics
    }
    # Why there is an option: the specification advises against types in data.
    assert {each["value"] for each in untyped["metrics"]} == {None}


def test_a_value_of_another_type_is_refused():
    for datatype, value in (
        (DataType.INT64, 1.5),
        (DataType.DOUBLE, "1"),
        (DataType.BOOLEAN, 1),
        (DataType.STRING, 1),
    ):
        metric = Metric(name="x", datatype=datatype, value=value, time_ms=1)
        with pytest.raises(ValueError, match=f"x: .* is no {datatype.name}"):
            encoded((metric,), time_ms=1, seq=0)


def test_a_command_is_read():
    assert booleans(command()) == {"Node Control/Rebirth": True}
    assert booleans(command(value=False)) == {"Node Control/Rebirth": False}
    other = Payload()
    other.metrics.add(name="x", double_value=1.0, float_value=2.0)
    other.metrics.add(alias=3, boolean_value=True)
    assert booleans(other.SerializeToString()) == {}


@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_be_refused(data):
    with suppress(ValueError):
        booleans(data)


@pytest.mark.parametrize(
    "data",
    [b"\x12", b"\x12\x05\x0a", b"\xff" * 11, b"\x12\xff\xff\xff\xff\x0f", b"\x13", b"\x10\x01"],
)
def test_what_is_no_payload_is_refused(data):
    with pytest.raises(ValueError, match=r"ends too early|no end|no wire type|no messages"):
        booleans(data)
