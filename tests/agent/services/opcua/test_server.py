"""The OPC UA server as its clients see it, those of another make too."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("asyncua", reason="needs the extra opcua")

from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

from agent.opcua.identity import Identity
from agent.opcua.probe import probe_place
from agent.part import State
from agent.record.ledger import Ledger
from agent.services.opcua import OpcuaService, OpcuaSettings, uri
from engine.errors import ConfigurationError
from tests.agent.statuses import WELL
from tests.ports import free_port
from tests.records import Wants, begin, end, inspected

NODE = Path(__file__).parents[3] / "node"
URI = "urn:tests:client"


class Requests:
    """Notes what was asked."""

    def __init__(self):
        self.asked = []

    def pause(self):
        self.asked.append("pause")

    def resume(self):
        self.asked.append("resume")

    def trigger(self, camera, part_id):
        self.asked.append(("trigger", camera, part_id))


class Agent:
    """An agent that is watched by an OPC UA server, with certificates of three clients."""

    def __init__(self, folder, ledger):
        self.port = free_port()
        self.folder, self.ledger, self.requests = folder, ledger, Requests()
        self.latest = replace(WELL, bundle_id="b" * 64)
        self.url = f"opc.tcp://127.0.0.1:{self.port}/atac"
        self.clients = {}
        for role in ("operators", "trusted", "strangers"):
            identity = Identity(folder / f"client-{role}", URI)
            identity.prepare()
            self.clients[role] = identity
            if role != "strangers":
                (folder / "opcua" / role).mkdir(parents=True)
                shutil.copy(identity.certificate_file, folder / "opcua" / role / "client.der")
        watched = SimpleNamespace(
            feed=ledger.feed,
            requests=self.requests,
            status=lambda: self.latest,
            config=SimpleNamespace(
                agent=SimpleNamespace(id="line-3"),
                ledger=SimpleNamespace(path=folder / "ledger.sqlite"),
            ),
        )
        self.watched, self.uri = watched, uri("line-3")
        self.settings = OpcuaSettings(listen="127.0.0.1", port=self.port)
        self.service = OpcuaService(self.settings, watched)

    def part(self, part_id, state=State.OK, score=1.0):
        part = inspected(begin(self.ledger, part_id, triggered_ns=1), score)
        end(self.ledger, part, state)
        self.ledger.flush(60)

    @contextlib.asynccontextmanager
    async def client(self, role="trusted", uri=URI):
        client = Client(self.url, timeout=60)
        client.application_uri = uri
        mine = self.clients[role]
        await client.set_security(
            SecurityPolicyBasic256Sha256,
            certificate=mine.certificate_file,
            private_key=mine.key_file,
            server_certificate=self.folder / "opcua" / "own" / "certificate.der",
        )
        async with client:
            yield client


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    folder = tmp_path_factory.mktemp("opcua")
    # As it is, the process gives way to all others: tests that run beside it would starve it.
    (folder / "hurried_server.py").write_text(
        "import sys\nfrom agent.opcua.serving import serve\nserve(sys.argv[1])\n"
    )
    path = f"{folder}:{os.environ.get('PYTHONPATH', Path.cwd())}"
    with (
        pytest.MonkeyPatch.context() as patch,
        Ledger(folder / "ledger.sqlite", agent_id="line-3", sinks=[Wants()]) as ledger,
    ):
        patch.setenv("PYTHONPATH", path)
        patch.setattr("agent.services.opcua._MODULE", "hurried_server")
        made = Agent(folder, ledger)
        with made.service:
            asyncio.run(reached(made))
            yield made


async def reached(agent):
    for _ in range(1200):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", agent.port), 1).close()
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the server does not listen")


async def value(client, *path):
    ours = await client.get_namespace_index("urn:atac:agent")
    node = await client.nodes.objects.get_child([f"{ours}:{name}" for name in path])
    return await node.read_value()


async def becomes(read, wanted):
    for _ in range(200):
        if (found := await read()) == wanted:
            return
        await asyncio.sleep(0.05)
    assert found == wanted


def test_flat_variables_show_the_newest_part(agent):
    async def look():
        agent.part("p-17", State.NG, 2.5)
        async with agent.client() as client:
            await becomes(lambda: value(client, "Agent", "Last", "PartId"), "p-17")
            assert await value(client, "Agent", "Last", "State") == "NG"
            assert not await value(client, "Agent", "Last", "IsOk")
            assert await value(client, "Agent", "Last", "Score") == 2.5
            await becomes(lambda: value(client, "Agent", "Status", "BundleId"), "b" * 64)

    asyncio.run(look())


class Heard:
    """What a subscription has brought."""

    def __init__(self):
        self.events = []

    def event_notification(self, event):
        self.events.append(event)


def test_each_result_is_an_event_with_its_figures(agent):
    async def look():
        async with agent.client() as client:
            vision = await client.get_namespace_index("http://opcfoundation.org/UA/MachineVision")
            ours = await client.get_namespace_index("urn:atac:agent")
            system = await client.nodes.objects.get_child([f"{ours}:VisionSystem"])
            ready = client.get_node(ua.NodeId(1024, vision))
            (kind,) = await ready.get_children(refs=ua.ObjectIds.HasSubtype)
            heard = Heard()
            subscription = await client.create_subscription(50, heard)
            await subscription.subscribe_events(system, kind)
            for number in range(5):
                agent.part(f"e-{number}", State.NG if number == 3 else State.OK, number / 2)
            await becomes(lambda: done(len(heard.events)), 5)
        assert [event.Message.Text for event in heard.events] == [
            *("e-0 OK", "e-1 OK", "e-2 OK", "e-3 NG", "e-4 OK")
        ]
        assert [event.Score for event in heard.events] == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert [event.ResultState for event in heard.events] == [1] * 5

    asyncio.run(look())


async def done(value):
    return value


def test_the_last_hundred_results_can_be_read_and_what_was_missed_comes_from_the_ledger(agent):
    async def look():
        agent.part("before")
        async with agent.client() as client:
            await becomes(lambda: value(client, "Agent", "Last", "PartId"), "before")
            after = [await value(client, "Agent", "Last", each) for each in ("Epoch", "Sequence")]
        for number in range(1000):
            end(agent.ledger, inspected(begin(agent.ledger, f"m-{number}"), 1.0), State.OK)
        agent.ledger.flush(60)
        async with agent.client() as client:
            ours = await client.get_namespace_index("urn:atac:agent")
            node = await client.nodes.objects.get_child([f"{ours}:Agent"])
            found = []
            while True:
                arguments = [
                    ua.Variant(after[0], ua.VariantType.String),
                    ua.Variant(after[1], ua.VariantType.UInt64),
                    ua.Variant(500, ua.VariantType.UInt32),
                ]
                rows = await node.call_method(f"{ours}:ResultsAfter", *arguments)
                rows = [json.loads(row) for row in rows or ()]
                if not rows:
                    break
                found += [row["part_id"] for row in rows]
                after = [rows[-1]["epoch"], rows[-1]["sequence"]]
            assert found == [f"m-{number}" for number in range(1000)]
            await becomes(lambda: value(client, "Agent", "Last", "PartId"), "m-999")
            vision = await client.get_namespace_index("http://opcfoundation.org/UA/MachineVision")
            folder = await client.nodes.objects.get_child(
                [f"{ours}:VisionSystem", f"{vision}:ResultManagement", f"{vision}:Results"]
            )
            assert len(await folder.get_variables()) == 100

    asyncio.run(look())


def test_operators_stop_and_start_inspection_and_the_state_machine_follows(agent):
    async def look():
        async with agent.client("operators") as client:
            vision, machine, automatic = await machines(client)
            state = automatic.get_child(["0:CurrentState"])
            state = await state
            await becomes(lambda: text(state), "ContinuousExecution")
            nothing = ua.Variant(0, ua.VariantType.Int32), ua.Variant("", ua.VariantType.String)
            assert await automatic.call_method(f"{vision}:Stop", *nothing) == 0
            for method in ("StartContinuous", "StartSingleJob"):
                unnamed = [ua.Variant(None, ua.VariantType.Null)] * 5
                job, error = await automatic.call_method(f"{vision}:{method}", *unnamed)
                assert error == 0
                assert job is not None
            agent.latest = replace(agent.latest, is_paused=True)
            await becomes(lambda: text(state), "Ready")
            agent.latest = replace(agent.latest, is_paused=False, faults=("inference: hangs",))
            of_machine = await machine.get_child(["0:CurrentState"])
            await becomes(lambda: text(of_machine), "Error")
            assert await machine.call_method(f"{vision}:Reset", *nothing) == -1
            agent.latest = replace(agent.latest, faults=())
            await becomes(lambda: text(of_machine), "Operational")
        assert agent.requests.asked == ["pause", "resume", ("trigger", None, None)]

    asyncio.run(look())


async def machines(client):
    vision = await client.get_namespace_index("http://opcfoundation.org/UA/MachineVision")
    ours = await client.get_namespace_index("urn:atac:agent")
    machine = await client.nodes.objects.get_child(
        [f"{ours}:VisionSystem", f"{vision}:VisionStateMachine"]
    )
    return vision, machine, await machine.get_child([f"{vision}:AutomaticModeStateMachine"])


async def text(node):
    return (await node.read_value()).Text


def test_readers_may_neither_call_nor_write(agent):
    async def look():
        async with agent.client() as client:
            vision, machine, _ = await machines(client)
            with pytest.raises(ua.UaStatusCodeError):
                await machine.call_method(f"{vision}:Reset", 0, "")
        for role in ("trusted", "operators"):
            async with agent.client(role) as client:
                ours = await client.get_namespace_index("urn:atac:agent")
                node = client.get_node(ua.NodeId("Last.PartId", ours))
                with pytest.raises(ua.UaStatusCodeError):
                    await node.write_value("forged")

    asyncio.run(look())


def test_strangers_and_those_without_encryption_are_turned_away(agent):
    async def look():
        with pytest.raises((ua.UaStatusCodeError, ConnectionError, TimeoutError)):
            async with agent.client("strangers"):
                pass
        with pytest.raises((ua.UaError, ConnectionError, TimeoutError)):
            async with Client(agent.url, timeout=5):
                pass

    asyncio.run(look())

    async def counted():
        async with agent.client() as client:
            await becomes(lambda: value(client, "Agent", "Status", "Refused"), 1)

    asyncio.run(counted())
    (kept,) = (agent.folder / "opcua" / "rejected").iterdir()
    assert kept.read_bytes() == agent.clients["strangers"].certificate_file.read_bytes()


def test_a_certificate_that_has_expired_or_is_another_application_s_opens_nothing(
    agent, tmp_path, monkeypatch
):
    monkeypatch.setattr("agent.opcua.identity._YEARS", 0)
    old = agent.clients["old"] = Identity(tmp_path, URI)
    old.prepare()
    placed = agent.folder / "opcua" / "operators" / "old.der"
    shutil.copy(old.certificate_file, placed)

    async def look():
        async with agent.client() as client:
            before = await value(client, "Agent", "Status", "Refused")
            for role, uri, why in (
                ("old", URI, "BadCertificateTimeInvalid"),
                ("trusted", "urn:another", "BadCertificateUriInvalid"),
            ):
                with pytest.raises((ua.UaError, ConnectionError, TimeoutError), match=why):
                    async with agent.client(role, uri):
                        pass
            await becomes(lambda: refused(client, before + 2), True)

    asyncio.run(look())
    placed.unlink()  # the agent is all tests'


def test_of_a_thousand_connections_a_hundred_stay_and_the_others_are_counted(agent):
    """A client that is there has each part meanwhile, and the process is the same."""
    process, many = agent.service.pid, 1000

    def closed(flood):
        """Whether the server has closed it, whatever it has said before."""
        with contextlib.suppress(BlockingIOError):
            return not flood.recv(4096, socket.MSG_PEEK)
        return False

    async def look():
        async with agent.client() as client, contextlib.AsyncExitStack() as open_ones:
            before = await value(client, "Agent", "Status", "Refused")
            floods = []
            for number in range(many):
                flood = socket.create_connection(("127.0.0.1", agent.port), 60)
                floods.append(open_ones.enter_context(flood))
                flood.setblocking(False)
                if number % 50 == 0:
                    await asyncio.sleep(0.01)
            agent.part("calm")
            await becomes(lambda: value(client, "Agent", "Last", "PartId"), "calm")
            turned_away = many - 100 + 1  # the client has a place, too
            await becomes(lambda: done(sum(map(closed, floods)) >= turned_away), True)
            await becomes(lambda: refused(client, before + turned_away), True)
            assert await value(client, "Agent", "Status", "Refused") <= before + many
        assert (agent.service.pid, agent.service.fault) == (process, None)

    asyncio.run(look())


def test_garbage_is_counted_and_leaves_the_clients_alone(agent):
    async def look():
        async with agent.client() as client:
            before = await value(client, "Agent", "Status", "Refused")
            for garbage in (
                b"GET / HTTP/1.1\r\n\r\n",
                os.urandom(10_000),
                b"HELF" + bytes(4),
                b"HELF" + (28).to_bytes(4, "little") + bytes(20),
                b"MSGF" + (16).to_bytes(4, "little") + b"\xff" * 8,
            ):
                with socket.create_connection(("127.0.0.1", agent.port), 10) as bad:
                    bad.sendall(garbage)
                    agent.part(garbage[:4].hex())
                    wanted = garbage[:4].hex()
                    await becomes(lambda: value(client, "Agent", "Last", "PartId"), wanted)
            await becomes(lambda: refused(client, before + 1), True)

    asyncio.run(look())


async def has_faults(client):
    return bool(await value(client, "Agent", "Status", "Faults"))


async def refused(client, number):
    return await value(client, "Agent", "Status", "Refused") >= number


def test_who_does_not_read_or_sends_without_end_is_closed(agent):
    async def look():
        async with agent.client() as client, agent.client() as slow:
            before = await value(client, "Agent", "Status", "Refused")
            agent.latest = replace(agent.latest, faults=("x" * 200_000,))
            await becomes(lambda: has_faults(client), True)
            ours = await slow.get_namespace_index("urn:atac:agent")
            node = slow.get_node(ua.NodeId("Status.Faults", ours))
            transport = slow.uaclient.protocol.transport
            transport.pause_reading()
            asked = [asyncio.create_task(node.read_value()) for _ in range(40)]
            with socket.create_connection(("127.0.0.1", agent.port), 10) as endless:
                endless.setblocking(False)
                for _ in range(4):
                    with contextlib.suppress(OSError):
                        await asyncio.get_running_loop().sock_sendall(
                            endless, b"MSGF" + (1 << 30).to_bytes(4, "little") + bytes(1 << 20)
                        )
                await becomes(lambda: refused(client, before + 2), True)
            agent.latest = replace(agent.latest, faults=())
            transport.resume_reading()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(look())


def test_a_client_of_another_make_sees_the_same(agent):
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules" / "node-opcua-client").is_dir():
        pytest.skip("needs node and: npm install --prefix tests/node --no-package-lock")
    mine = agent.clients["trusted"]
    pem = agent.folder / "client.pem"
    pem.write_bytes(mine.pem())
    with subprocess.Popen(
        [node, NODE / "opcua.js", agent.url, pem, mine.key_file, URI, agent.folder / "pki"],
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        # Its libraries say things there, too.
        said = (line for line in client.stdout if line.startswith(("ready", "{")))
        assert next(said) == "ready\n"
        agent.part("n-1", State.NG, 3.5)
        heard = json.loads(next(said))
    assert heard == {"message": "n-1 NG", "score": 3.5, "part": "n-1", "last": "n-1"}


def test_a_port_that_is_taken_is_one_line_of_health_and_doctor_says_it_before(
    agent, tmp_path, eventually
):
    """As are the certificates: who may connect, and what keeps others out."""
    settings = replace(agent.settings, folder=tmp_path)
    with OpcuaService(settings, agent.watched) as second:
        eventually(lambda: "cannot listen" in (second.fault or ""), 60)
    assert second.fault == f"opcua: cannot listen at 127.0.0.1:{agent.port}: Address already in use"

    here = Identity(tmp_path, "urn:here")
    with pytest.raises(OSError, match="cannot listen at"):
        probe_place(here, "127.0.0.1", agent.port, is_running=False)
    with pytest.raises(ConfigurationError, match="this is urn:here; remove"):
        probe_place(here, "127.0.0.1", agent.port, is_running=True)
    here = Identity(agent.folder / "opcua", agent.uri)
    said, missing = probe_place(here, "127.0.0.1", agent.port, is_running=True)
    assert "SignAndEncrypt; its certificate SHA-256 " in said
    known = sum(len(here.clients(name)) for name in ("operators", "trusted"))
    assert known >= 2
    assert said.endswith(f"certificates of clients: {known}")
    assert not missing
    new = Identity(tmp_path / "new", "urn:here")
    said, missing = probe_place(new, "127.0.0.1", free_port(), is_running=False)
    assert "made at the first start" in said
    assert "none may connect yet" in missing
    new.prepare()
    new.reject(agent.clients["strangers"].certificate_file.read_bytes())
    assert "1 were turned away; move" in probe_place(new, "", 0, is_running=True)[1]


def test_a_server_that_is_killed_comes_back(agent):
    async def look():
        killed = agent.service.pid
        os.kill(killed, signal.SIGKILL)
        await becomes(lambda: done(agent.service.pid != killed), True)
        await reached(agent)
        agent.part("after")
        async with agent.client() as client:
            await becomes(lambda: value(client, "Agent", "Last", "PartId"), "after")

    asyncio.run(look())
