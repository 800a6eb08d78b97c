"""A roll call of all nodes before torchrun starts: python -m launch.rollcall [--wait SECONDS] SCRIPT.py [ARGS]

The master listens on the port of the rendezvous; the others call, greet, and tell who they are and what they are about
to run.  Everybody hears the same verdict within seconds: who is missing, or what differs where.  Each side says one
line of JSON; nothing waits without an end, and standard library only, so that it starts at once.
"""

import argparse
import contextlib
import errno
import json
import os
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from launch.roll import Node, disagreements, listed, parse, this_node

GREETING = "tryon roll call 1"
GREETING_S = 5.0  # within which a listener that is ours greets
GRACE_S = 3.0  # from the first fault until the verdict, so that most nodes hear it
RETRY_S = 0.25
LIMIT = 1 << 20  # bytes of a line
MOST = 64  # callers that have not said who they are


class Verdict(NamedTuple):
    ok: bool
    text: str
    lasting: bool = False  # the same command would be refused again


class Caller:
    """A connection to the master: who is there, once it has said so."""

    def __init__(self, connection: socket.socket):
        self.connection, self.heard, self.node = connection, b"", None
        self.since = time.monotonic()

    def hang_up(self, verdict: Verdict | None = None) -> None:
        with contextlib.suppress(OSError):
            if verdict:
                self.connection.settimeout(2)
                self.connection.sendall(_line(verdict._asdict()))
        self.connection.close()


class Master:
    """Hears the others and judges."""

    def __init__(self, me: Node, port: int, wait: float):
        self.me, self.names, self.wait = me, me.nodes.split(), wait
        self.place = f"{me.name}:{port}"
        self.here: dict[int, Caller] = {}  # by number
        self.late = {0: 0.0}
        self.faults: list[str] = []
        self.strangers: list[str] = []
        self.fault_at: float | None = None
        self.selector = selectors.DefaultSelector()
        try:
            self.listener = socket.create_server(("", port), backlog=1024)
        except OSError as error:
            why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
            raise ValueError(
                f"port {port} of the master {me.name} {why}; on every node choose a free one: TRYON_PORT=N"
            ) from None
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)

    def judge(self) -> Verdict:
        """Waits until all are here, something differs, or the time is over; tells everybody."""
        end = time.monotonic() + self.wait
        while len(self.here) < len(self.names) - 1:
            limit = end if self.fault_at is None else min(end, self.fault_at + GRACE_S)
            if time.monotonic() > limit:
                break
            for key, _ in self.selector.select(min(0.5, max(0.0, limit - time.monotonic()))):
                self._accept() if key.data is None else self._hear(key.data)
            self._drop_the_silent()
        verdict = self._verdict()
        for key in list(self.selector.get_map().values()):
            if key.data is not None:
                key.data.hang_up(verdict)
        self.selector.close()
        self.listener.close()
        return verdict

    def _verdict(self) -> Verdict:
        if self.faults:
            return Verdict(False, ". ".join(dict.fromkeys(self.faults)), True)
        missing = [name for number, name in enumerate(self.names) if number not in {0, *self.here}]
        if missing:
            also = f"; refused: {'; '.join(self.strangers[:3])}" if self.strangers else ""
            return Verdict(
                False,
                f"{listed(missing)} never called {self.place} within {self.wait:.0f} s; start the same command there, "
                f"and see what it says there{also}",
            )
        ranks = self.me.ranks
        return Verdict(True, f"{listed(self.names)}: {len(self.names)} x {ranks} ranks, same code, same config")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            waiting = [key for key in self.selector.get_map().values() if key.data and key.data.node is None]
            if len(waiting) >= MOST:
                connection.close()
                return
            connection.settimeout(2)
            connection.sendall(_line({"greeting": GREETING, "host": self.me.name}))
            connection.setblocking(False)
            self.selector.register(connection, selectors.EVENT_READ, Caller(connection))

    def _hear(self, caller: Caller) -> None:
        try:
            part = caller.connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        caller.heard += part
        if not part or len(caller.heard) > LIMIT:
            self._forget(caller)
        elif caller.node is None and b"\n" in caller.heard:
            try:
                node = parse(json.loads(caller.heard.partition(b"\n")[0]))
            except (ValueError, RecursionError):
                self._forget(caller)
                return
            caller.node = node
            self._admit(caller, node)

    def _admit(self, caller: Caller, node: Node) -> None:
        stranger = None
        if node.job != self.me.job:
            stranger = f"{node.host} is of job {node.job[:80]}, {self.place} of job {self.me.job}"
        elif node.nodes != self.me.nodes:
            stranger = f"{node.host} knows the nodes {node.nodes[:200]}, {self.me.name} the nodes {self.me.nodes}"
        if stranger:
            self.strangers.append(stranger)
            self._forget(caller, Verdict(False, f"{stranger}; name the same nodes and job on every node", True))
            return
        other = self.me if node.number == 0 else self.here[node.number].node if node.number in self.here else None
        if other:
            twice = f"{node.host} was" if other.host == node.host else f"{other.host} and {node.host} were both"
            which = f"node {node.number + 1} of {len(self.names)}"
            self._fault(f"{twice} started as {which}, twice in all; start the command once on every node")
            return
        self.here[node.number] = caller
        self.late[node.number] = time.time() - node.clock
        for fault in disagreements([self.me, node], self.late):
            self._fault(fault)
        if self.faults:  # of many nodes the usual one is right, and not the master
            known = [self.me, *(self.here[number].node for number in sorted(self.here))]
            twice = [fault for fault in self.faults if ", twice in all" in fault]
            self.faults = twice + disagreements(known, self.late)

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        self.fault_at = self.fault_at or time.monotonic()

    def _forget(self, caller: Caller, verdict: Verdict | None = None) -> None:
        self.selector.unregister(caller.connection)
        caller.hang_up(verdict)
        if caller.node and self.here.get(caller.node.number) is caller:
            del self.here[caller.node.number]

    def _drop_the_silent(self) -> None:
        for key in list(self.selector.get_map().values()):
            if key.data and key.data.node is None and time.monotonic() - key.data.since > GREETING_S:
                self._forget(key.data)


def call(me: Node, address: str, port: int, wait: float) -> Verdict:
    """The master's verdict.  Raises ValueError when it cannot be had, with what the user should look at."""
    master, began, foreign_since, last = me.nodes.split()[0], time.monotonic(), None, None
    while time.monotonic() - began < wait:
        try:
            connection = socket.create_connection((address, port), timeout=min(5.0, wait))
        except OSError as error:
            last = error
            time.sleep(RETRY_S)
            continue
        with connection:
            greeting = _read(connection, GREETING_S)
            if greeting is None:  # the listener is closing
                time.sleep(RETRY_S)
                continue
            if not isinstance(greeting, dict) or greeting.get("greeting") != GREETING:
                foreign_since = foreign_since or time.monotonic()
                if time.monotonic() - foreign_since < GREETING_S:
                    time.sleep(RETRY_S)
                    continue
                raise ValueError(
                    f"another program listens on port {port} of the master {master} ({address}); on every node choose "
                    "a free one: TRYON_PORT=N"
                )
            with contextlib.suppress(OSError):
                connection.sendall(_line(me._replace(clock=time.time())._asdict()))
                told = _read(connection, wait + GRACE_S + 10)
                if isinstance(told, dict) and {"ok", "text"} <= told.keys():
                    return Verdict(told["ok"] is True, str(told["text"]), bool(told.get("lasting")))
            raise ValueError(f"the master {master} hung up during the roll call; see what it says there")
    raise ValueError(_unreachable(me, master, f"{address}:{port}", wait, last))


def _unreachable(me: Node, master: str, place: str, wait: float, last: OSError | None) -> str:
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "?")
    if isinstance(last, ConnectionRefusedError) or last is None:
        why = f"nothing listens there; start the same command on {master}, or see what it says there"
    elif isinstance(last, TimeoutError):
        why = (
            f"no answer; is {master} up, does a firewall close the port, is {interface} the network between the hosts "
            "(TRYON_IFNAME chooses another)"
        )
    else:
        why = f"{last.strerror or last}; is {interface} the network between the hosts (TRYON_IFNAME chooses another)"
    return f"{me.name} cannot reach the master {master} at {place} for {wait:.0f} s: {why}"


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _read(connection: socket.socket, seconds: float) -> Any:
    """What the other side says in one line of JSON; None when it says nothing and hangs up, "" when it is not JSON."""
    heard, end = b"", time.monotonic() + seconds
    try:
        while b"\n" not in heard and len(heard) <= LIMIT:
            connection.settimeout(max(0.01, end - time.monotonic()))
            part = connection.recv(1 << 16)
            if not part:
                return None if not heard else ""
            heard += part
        return json.loads(heard.partition(b"\n")[0])
    except ConnectionError:
        return None
    except (OSError, ValueError, RecursionError):
        return ""


def roll_call(command: list[str], wait: float) -> Verdict:
    """Raises ValueError when there can be no verdict."""
    me = this_node(command)
    address, _, port = os.environ["PET_RDZV_ENDPOINT"].rpartition(":")
    if " " not in me.nodes:
        return Verdict(True, "")
    return Master(me, int(port), wait).judge() if me.number == 0 else call(me, address, int(port), wait)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wait", type=float, default=50.0, metavar="S", help="seconds until a node counts as missing")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="the script that torchrun is to start, and its arguments"
    )
    arguments = parser.parse_args()
    leads = os.environ.get("TRYON_NODE_RANK") == "0"
    try:
        verdict = roll_call(arguments.command, arguments.wait)
    except ValueError as error:
        verdict = Verdict(False, str(error))
    if not verdict.ok:
        message = f"error: {verdict.text}"
        print(message, file=sys.stderr)
        if leads and verdict.lasting and "TRYON_REFUSED" in os.environ:  # a batch script does not try again
            with contextlib.suppress(OSError), Path(os.environ["TRYON_REFUSED"]).open("a", encoding="utf-8") as file:
                file.write(message + "\n")
        return 1
    if leads and verdict.text:
        print(f"roll call: {verdict.text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
