"""The child of a GenICam camera, GigE Vision or USB3 Vision: Aravis by GObject introspection.

It runs under the system's Python, where the system's packages are. Aravis writes each frame into a
slot of the shared memory as it comes from the wire.
"""

import difflib
import fcntl
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import Any, Final

from agent.camera_child import stream
from agent.camera_child.pfnc import pixel_format
from agent.camera_child.wire import GoneError, Message, RefusedError, receive, send

Value = bool | int | float | str
Features = Sequence[tuple[str, Value]]

_TAKEN_S: Final = 4.0
"""How long a camera is waited for that another program controls: it may be our own, which died."""
_HEARTBEAT_MS: Final = 2500
"""After so long without a sign from its controller a GigE Vision camera is free for another one.
Aravis gives one a second."""
_SILENT_S: Final = 2.0
"""A camera that runs freely is away after so long without a frame, and three exposures."""
_STALE_S: Final = 0.2
"""A frame that comes so soon after the start is of a trigger before it."""
_UNDERWAY_S: Final = 0.02
"""So long packets may still come after a camera was told to stop."""
_HEARTBEAT_REGISTER: Final = 0x0938
_SMALL_PACKET: Final = 1500
_OVERHEAD: Final = 28 + 8
"""Of a packet: IP, UDP and GVSP."""
_SIOCGIFADDR: Final = 0x8915
_SHOWN: Final = ("PixelFormat", "Width", "Height", "ExposureTime", "ExposureTimeAbs", "Gain")
_CLOSE: Final = 0.01
"""How far from what is written a number may be read back, as a part of it."""


def serve(
    connection: Connection,
    memory: int,
    *,
    device: str | None,
    features: Features | None,
    is_free_running: bool,
    trigger_count_chunk: str | None,
) -> None:
    """Give the camera's frames, or, where no camera is named, tell which there are."""
    if features is None:
        receive(connection)
        try:
            told: Message = {"found": [_looked_at(each) for each in _found()]}
        except GoneError as error:
            told = {"gone": str(error)}
        send(connection, told)
        return
    camera = _Camera(
        memory,
        device,
        features,
        is_free_running=is_free_running,
        trigger_count_chunk=trigger_count_chunk,
    )
    stream.serve(connection, camera)


def _aravis() -> tuple[Any, type[Exception]]:
    """Aravis, and the class of its errors."""
    try:
        import gi

        gi.require_version("Aravis", "0.8")
        from gi.repository import Aravis, GLib
    except (ImportError, ValueError) as error:
        raise GoneError(
            "cannot be reached: Aravis for the system's Python is missing "
            f"({error}); install the packages gir1.2-aravis-0.8 and python3-gi"
        ) from None
    return Aravis, GLib.Error


class _Camera:
    def __init__(
        self,
        memory: int,
        device: str | None,
        features: Features,
        *,
        is_free_running: bool,
        trigger_count_chunk: str | None,
    ) -> None:
        self._memory = memory
        self._is_free_running = is_free_running
        self._name = device
        self._features = features
        self._trigger_count_chunk = trigger_count_chunk
        self._aravis: Any = None
        self._error: type[Exception] = Exception
        self._camera: Any = None
        self._device: Any = None
        self._stream: Any = None
        self._chunks: Any = None
        self._buffers: list[Any] = []
        self._exposure_us: float | None = None
        self._is_lost = threading.Event()
        self._format = 0
        self._end: str | None = None
        self._before: dict[str, Value] = {}
        self._newest = 0.0
        self._lent: set[int] = set()
        self._patience_s = _SILENT_S

    # ---- opening

    def open(self, sign: Callable[[], None]) -> Message:
        self._aravis, self._error = _aravis()
        try:
            until = monotonic() + _TAKEN_S
            self._camera = self._opened(sign)
            self._device = self._camera.get_device()
            self._control(sign, until)
            self._device.connect("control-lost", lambda _device: self._is_lost.set())
            with suppress(self._error):
                # It may still be sending to a program that died.
                self._camera.stop_acquisition()
            sign()
            written = [self._written(name, value) for name, value in self._features]
            self._settle()
            sign()
            self._prepare_stream()
            told = self._started(dict(written))
            self._drain()
            self._newest = monotonic()
            return told
        except self._error as error:
            raise GoneError(f"cannot be used: {_message(error)}") from None

    def pause(self) -> None:
        with suppress(self._error):
            self._camera.stop_acquisition()
        sleep(_UNDERWAY_S)

    def adjust(self, features: Features, sign: Callable[[], None]) -> Message:
        try:
            self._before.clear()
            try:
                written = [self._written(name, value) for name, value in features]
            except RefusedError:
                self._settle()
                self._started({})
                raise
            if self._camera.get_payload() > self._slots.size:
                raise GoneError("is set up again, as its frames are larger now")
            self._features = features
            self._settle()
            sign()
            return self._started(dict(written))
        except self._error as error:
            raise GoneError(f"cannot be used: {_message(error)}") from None

    def _opened(self, sign: Callable[[], None]) -> Any:
        """The camera of this name; raises `GoneError` when there is none, or more than one."""
        if self._name is not None:
            with suppress(self._error):
                return self._aravis.Camera.new(self._name)
            sign()
        found = list(_found())
        sign()
        there = ", ".join(each["serial"] or each["id"] for each in found)
        if self._name is not None:
            names = ("id", "serial", "address")
            found = [each for each in found if self._name in (each[name] for name in names)]
            if not found:
                raise GoneError(
                    f"was not found; the network and USB have {there or 'no camera'}: check power, "
                    "cable and address, or write device: with one of these"
                )
        if not found:
            raise GoneError("was not found: no camera answers; check power, cable and address")
        if len(found) > 1:
            raise GoneError(
                f"cannot be chosen among {len(found)} cameras: write device: with one of {there}"
            )
        return self._aravis.Camera.new(found[0]["id"])

    def _control(self, sign: Callable[[], None], until: float) -> None:
        """Be the one who controls a GigE Vision camera."""
        if not self._camera.is_gv_device():
            return
        while not self._device.is_controller():
            if monotonic() > until:
                raise GoneError(
                    "is held by another program, and only one may control it: close the maker's "
                    "viewer or the other agent"
                )
            sleep(0.1)
            sign()
            with suppress(self._error):
                self._device.take_control()
        with suppress(self._error):
            self._device.write_register(_HEARTBEAT_REGISTER, _HEARTBEAT_MS)

    def _settle(self) -> None:
        """Everything that the configuration leaves to us."""
        named = {name for name, _ in self._features}
        with suppress(self._error):
            if "AcquisitionMode" not in named:
                self._camera.set_string("AcquisitionMode", "Continuous")
        if self._camera.is_gv_device() and "GevSCPSPacketSize" not in named:
            with suppress(self._error):
                self._camera.gv_auto_packet_size()
        mode = self._read("TriggerMode")
        if mode == "On" and "TriggerMode" not in named:
            raise RefusedError(
                "features.TriggerMode",
                None,
                "the camera waits for triggers, and the configuration does not say so; write "
                "TriggerMode: On or TriggerMode: Off",
            )
        if self._read("ExposureAuto") in {None, "Off"}:
            exposure = self._read("ExposureTime") or self._read("ExposureTimeAbs")
            self._exposure_us = float(exposure) if isinstance(exposure, int | float) else None
        self._patience_s = _SILENT_S + 3e-6 * (self._exposure_us or 0.0)
        if isinstance(rate := self._read("AcquisitionFrameRate"), float) and rate > 0:
            self._patience_s += 2 / rate
        if self._read("ChunkModeActive") is True:
            self._chunks = self._camera.create_chunk_parser()

    def _prepare_stream(self) -> None:
        slots = self._slots = stream.Slots(self._memory, self._camera.get_payload())
        self._stream = self._camera.create_stream(None, None)
        if self._stream is None:
            raise GoneError("gives no stream; another program may receive its frames")
        for slot in range(slots.count):
            buffer = self._aravis.Buffer.new(slots.size, slots.address(slot))
            self._buffers.append(buffer)
            self._stream.push_buffer(buffer)

    def _started(self, written: dict[str, Value]) -> Message:
        self._format = self._camera.get_pixel_format()
        self._camera.start_acquisition()
        self._newest = monotonic()
        packet_size = self._packet_size()
        return stream.opened(
            self._slots,
            pixel_format=pixel_format(self._format),
            id=self._camera.get_device_serial_number() or self._camera.get_device_id(),
            vendor=self._camera.get_vendor_name() or "",
            model=self._camera.get_model_name() or "",
            serial=self._camera.get_device_serial_number() or "",
            firmware=str(self._read("DeviceFirmwareVersion") or self._read("DeviceVersion") or ""),
            address=self._address(),
            features={name: self._read(name) for name in (*written, *_SHOWN) if self._has(name)},
            before=self._before,
            packet_size=packet_size,
            notes=list(self._notes(packet_size)),
        )

    def _drain(self) -> None:
        """Leave out the frames of an agent's triggers that came before this connection."""
        if self._is_free_running or self._read("TriggerSource") != "Software":
            return
        until = monotonic() + _STALE_S
        while (left := until - monotonic()) > 0:
            if (stale := self._stream.timeout_pop_buffer(round(left * 1e6))) is not None:
                self._stream.push_buffer(stale)

    def _address(self) -> str:
        if not self._camera.is_gv_device():
            return ""
        return str(self._device.get_device_address().get_address().to_string())

    def _packet_size(self) -> int | None:
        if not self._camera.is_gv_device():
            return None
        return int(self._camera.gv_get_packet_size())

    def _notes(self, packet_size: int | None) -> Iterator[str]:
        if packet_size is None:
            return
        interface, mtu = self._interface()
        is_small = packet_size <= _SMALL_PACKET
        if mtu is not None and packet_size > mtu:
            yield (
                f"packets of {packet_size} bytes are larger than the MTU {mtu} of {interface}: "
                f"set its MTU to 9000 (ip link set {interface} mtu 9000), also in the switch, or "
                "remove GevSCPSPacketSize"
            )
        elif is_small and mtu is not None and mtu > _SMALL_PACKET:
            yield (
                f"packets of {packet_size} bytes cost much CPU time; {interface} takes {mtu}: "
                "write GevSCPSPacketSize: 8000 below features, and see that the switch takes it"
            )
        elif is_small:
            yield (
                f"packets of {packet_size} bytes cost much CPU time: set the MTU of {interface} to "
                f"9000 (ip link set {interface} mtu 9000), also in the switch"
            )

    def _interface(self) -> tuple[str, int | None]:
        """The network interface that the frames come by, and its MTU."""
        address = self._device.get_interface_address().get_address().to_string()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                with suppress(OSError, ValueError):
                    answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
                    if socket.inet_ntoa(answer[20:24]) == address:
                        return name, int(Path(f"/sys/class/net/{name}/mtu").read_text())
        return f"the interface with address {address}", None

    # ---- features

    def settings(self) -> dict[str, Value]:
        """What a configuration would say of the camera as it is now; nothing where it is away."""
        self._aravis, self._error = _aravis()
        try:
            self._camera = self._aravis.Camera.new(self._name)
            self._device = self._camera.get_device()
            found = {name: self._read(name) for name in (*_SHOWN, "TriggerMode", "TriggerSource")}
        except self._error:
            return {}
        if found["TriggerMode"] != "On":
            del found["TriggerSource"]
        self.close()
        return {name: value for name, value in found.items() if value is not None}

    def _has(self, name: str) -> bool:
        try:
            return bool(self._camera.is_feature_available(name))
        except self._error:
            return False

    def _read(self, name: str) -> Value | None:
        """The value of a feature; `None` where the camera has none of this name."""
        node = self._device.get_feature(name)
        if node is None or not self._has(name):
            return None
        aravis = self._aravis
        with suppress(self._error):
            if isinstance(node, aravis.GcEnumeration):
                return str(self._device.get_string_feature_value(name))
            if isinstance(node, aravis.GcBoolean):
                return bool(self._device.get_boolean_feature_value(name))
            if isinstance(node, aravis.GcFloat):
                return float(self._device.get_float_feature_value(name))
            if isinstance(node, aravis.GcInteger):
                return int(self._device.get_integer_feature_value(name))
            if isinstance(node, aravis.GcString):
                return str(self._device.get_string_feature_value(name))
        return None

    def _written(self, name: str, value: Value) -> tuple[str, Value]:
        """Write a feature, read it back and compare; raises `RefusedError`."""
        key = f"features.{name}"
        node = self._device.get_feature(name)
        if node is None or not self._has(name):
            near = self._similar(name)
            raise RefusedError(key, value, f"the camera has no such feature{near}")
        aravis = self._aravis
        if isinstance(node, aravis.GcCommand):
            if value is not True:
                raise RefusedError(key, value, "is a command; write true to have it executed")
            self._device.execute_command(name)
            return name, value
        allowed = self._allowed(name, node, value)
        if allowed is not None:
            raise RefusedError(key, value, allowed)
        if isinstance(node, aravis.GcEnumeration):
            value = _on_off(value)
        before = self._read(name)
        if before is not None and not _is_same(value, before):
            self._before[name] = before
        try:
            self._write(name, node, value)
        except self._error as error:
            if self._is_away(error):
                raise
            raise RefusedError(key, value, f"the camera refuses it: {_message(error)}") from None
        if (found := self._read(name)) is None:
            raise GoneError(f"gave no value when {name} was read back")
        if not _is_same(value, found):
            raise RefusedError(
                key, value, f"the camera has {found!r} after it was written; write a value it takes"
            )
        return name, value

    def _is_away(self, error: Exception) -> bool:
        """Whether the camera did not answer, other than by a refusal."""
        codes = self._aravis.DeviceError
        away = {codes.NOT_CONNECTED, codes.NOT_CONTROLLER, codes.TIMEOUT, codes.TRANSFER_ERROR}
        is_device = "device-error" in getattr(error, "domain", "")
        return is_device and getattr(error, "code", None) in {int(code) for code in away}

    def _write(self, name: str, node: Any, value: Value) -> None:
        aravis, device = self._aravis, self._device
        if isinstance(node, aravis.GcEnumeration):
            device.set_string_feature_value(name, str(value))
        elif isinstance(node, aravis.GcBoolean):
            device.set_boolean_feature_value(name, bool(value))
        elif isinstance(node, aravis.GcFloat):
            device.set_float_feature_value(name, float(value))
        elif isinstance(node, aravis.GcInteger):
            device.set_integer_feature_value(name, int(value))
        else:
            device.set_string_feature_value(name, str(value))

    def _allowed(self, name: str, node: Any, value: Value) -> str | None:
        """What may be written instead of `value`; `None`: it may be written."""
        aravis, device = self._aravis, self._device
        if isinstance(node, aravis.GcEnumeration):
            known = list(device.dup_available_enumeration_feature_values_as_strings(name))
            return None if _on_off(value) in known else f"write {' or '.join(known)}"
        if isinstance(node, aravis.GcBoolean):
            return None if isinstance(value, bool) else "write true or false"
        if isinstance(node, aravis.GcFloat | aravis.GcInteger):
            is_float = isinstance(node, aravis.GcFloat)
            kind = int | float if is_float else int
            bounds = (
                device.get_float_feature_bounds(name)
                if is_float
                else device.get_integer_feature_bounds(name)
            )
            low, high = bounds
            if isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high:
                return None
            number = "a number" if is_float else "a whole number"
            return f"write {number} from {low:g} to {high:g}"
        return None if isinstance(value, str) else "write text"

    def _similar(self, name: str) -> str:
        """Features that may be meant: older cameras have other names for some."""
        known = sorted(self._names("Root"))
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        return f"; did you mean {' or '.join(near)}?" if near else "; see the maker's viewer"

    def _names(self, category: str) -> Iterator[str]:
        for name in self._device.get_feature(category).get_features():
            node = self._device.get_feature(name)
            if isinstance(node, self._aravis.GcCategory):
                yield from self._names(name)
            elif node is not None:
                yield name

    # ---- frames

    def next(self, within_s: float) -> Message | None:
        if self._end is not None:
            raise GoneError(self._end)
        buffer = self._stream.timeout_pop_buffer(round(within_s * 1e6))
        if buffer is None:
            if self._is_lost.is_set():
                raise GoneError(
                    "was lost: it no longer answers; check power and cable, and whether another "
                    "program has taken control of it"
                )
            if len(self._lent) == self._slots.count:  # the agent has them all: no frame can come
                self._newest = monotonic()
            if self._is_free_running and monotonic() - self._newest > self._patience_s:
                raise GoneError(
                    "gives no more frames; check power, cable and whether the firewall lets UDP "
                    "through"
                )
            return None
        self._newest = monotonic()
        slot = self._buffers.index(buffer)
        self._lent.add(slot)
        problem = self._problem(buffer)
        width = height = padding = 0
        number = self._format
        if problem is None:  # of others there may not even be a size
            width, height = buffer.get_image_width(), buffer.get_image_height()
            padding, _ = buffer.get_image_padding()
            number = buffer.get_image_pixel_format()
        return stream.frame(
            slot,
            width=width,
            height=height,
            pixel_format=pixel_format(number),
            stride=_stride(width, number, padding),
            block_id=buffer.get_frame_id(),
            captured_ns=buffer.get_system_timestamp() or time_ns(),
            device_ns=buffer.get_timestamp() or None,
            exposure_us=self._chunk(buffer, "ChunkExposureTime") or self._exposure_us,
            trigger_count=self._trigger_count(buffer),
            problem=problem,
        )

    def _problem(self, buffer: Any) -> str | None:
        status = self._aravis.BufferStatus
        found = buffer.get_status()
        is_whole = found in {status.SUCCESS, status.SIZE_MISMATCH}
        number = buffer.get_image_pixel_format() if is_whole else 0
        if number not in {0, self._format}:
            self._end = (
                f"changed its PixelFormat from {pixel_format(self._format)} to "
                f"{pixel_format(number)} while it ran; it is set up again: let no other program "
                "write to it"
            )
            return f"the camera {self._end}"
        if found == status.SUCCESS:
            return None
        if found == status.SIZE_MISMATCH:
            return (
                "the frame is larger than the camera has announced: let no other program write "
                "Width, Height or PixelFormat"
            )
        remedy = "check cable, switch and network card"
        if self._camera.is_gv_device():
            interface, mtu = self._interface()
            size = self._packet_size() or 0
            if mtu is not None and size > mtu:
                remedy = (
                    f"its packets of {size} bytes do not pass {interface}, whose MTU is {mtu}: "
                    f"set it to 9000 (ip link set {interface} mtu 9000) or remove "
                    "GevSCPSPacketSize"
                )
            else:
                remedy += ", and raise GevSCPD where several cameras share a network"
        return f"the frame is incomplete ({found.value_nick}): packets were lost; {remedy}"

    def _chunk(self, buffer: Any, name: str) -> float | None:
        if self._chunks is None or not buffer.has_chunks():
            return None
        with suppress(self._error):
            return float(self._chunks.get_float_value(buffer, name))
        return None

    def _trigger_count(self, buffer: Any) -> int | None:
        name = self._trigger_count_chunk
        if name is None or self._chunks is None or not buffer.has_chunks():
            return None
        with suppress(self._error):
            return int(self._chunks.get_integer_value(buffer, name))
        return None

    def free(self, slot: int) -> None:
        self._lent.discard(slot)
        self._stream.push_buffer(self._buffers[slot])

    def fire(self) -> None:
        try:
            self._device.execute_command("TriggerSoftware")
        except self._error as error:
            raise GoneError(f"cannot be triggered: {_message(error)}") from None

    def close(self) -> None:
        if self._camera is None:
            return
        if self._stream is not None:
            with suppress(self._error):
                self._camera.stop_acquisition()
        self._stream = None
        if self._camera.is_gv_device():
            with suppress(self._error):
                self._device.leave_control()


def _found() -> Iterator[dict[str, str]]:
    """What answers on network and USB."""
    aravis, _ = _aravis()
    aravis.update_device_list()
    for index in range(aravis.get_n_devices()):
        yield {
            "id": aravis.get_device_id(index) or "",
            "vendor": aravis.get_device_vendor(index) or "",
            "model": aravis.get_device_model(index) or "",
            "serial": aravis.get_device_serial_nbr(index) or "",
            "address": aravis.get_device_address(index) or "",
            "protocol": aravis.get_device_protocol(index) or "",
        }


def _looked_at(found: dict[str, str]) -> Message:
    """A camera with its settings, where they can be read."""
    camera = _Camera(-1, found["id"], (), is_free_running=True, trigger_count_chunk=None)
    return found | {"features": camera.settings()}


def _on_off(value: Value) -> Value:
    """YAML takes On and Off for true and false."""
    return {True: "On", False: "Off"}[value] if isinstance(value, bool) else value


def _is_same(written: Value, found: Value | None) -> bool:
    if isinstance(found, float) and isinstance(written, int | float):
        return abs(found - written) <= _CLOSE * abs(written)
    return written == found


def _stride(width: int, number: int, padding: int) -> int | None:
    """Bytes from row to row, where rows are filled up."""
    bits = number >> 16 & 0xFF
    return width * bits // 8 + padding if padding else None


def _message(error: Exception) -> str:
    return str(getattr(error, "message", error))
