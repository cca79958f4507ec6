"""A network that loses, delays, drops and resets: a namespace of its own, and a bad wire in it.

In the namespace 127.77.0.2 is at the far end of a TUN device. What is sent there comes back with
source and destination exchanged, so that a connection to it reaches whoever listens on 127.77.0.1
in the same namespace; every packet of both directions passes through this file, and fares as the
port of the listener says. No kernel module for bad networks is needed, and nothing of it can leave
the machine: the namespace has no other device.

Run as a program (`python wire.py NAMESPACE COMMAND…`) it enters a namespace and becomes COMMAND.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which

NEAR, FAR = "127.77.0.1", "127.77.0.2"
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DEVICE = "wire0"
START_SECONDS = 10.0

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class NotPermitted(Exception):
    """This machine lets us make no network of our own; the text says why."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How packets of one port fare. `loss` is a share, `delay` in seconds, each way.

    `refuse`: a connection is answered with a reset; `reset`: the first data is.
    """

    loss: float = 0.0
    delay: float = 0.0
    refuse: bool = False
    reset: bool = False


class Wire:
    """The namespace and its one device; a context manager. `weather` is by listening port."""

    def __init__(self) -> None:
        self.weather: dict[int, Weather] = {}
        self.lost: Counter[int] = Counter()
        self.carried: Counter[int] = Counter()
        self.namespace = Path()
        self._chance = random.Random(30)
        self._problem: Exception | None = None
        self._ready = threading.Event()
        self._over, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._asked: list[tuple[Callable[[], None], threading.Event]] = []

    def __enter__(self) -> Wire:
        """Raises NotPermitted."""
        if which("ip") is None:
            raise NotPermitted("the command `ip` is missing (Debian: iproute2)")
        self._thread.start()
        self._ready.wait(START_SECONDS)
        if self._problem is not None:
            self._stop()
            raise NotPermitted(f"no network namespace of our own: {self._problem}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def listener(self, weather: Weather) -> tuple[socket.socket, str]:
        """A socket in the namespace, and the URL at which it is reached over the wire."""
        made: list[socket.socket] = []

        def bind() -> None:
            bound = socket.socket()
            bound.bind((NEAR, 0))
            made.append(bound)

        done = threading.Event()
        self._asked.append((bind, done))
        os.write(self._end, b"?")
        assert done.wait(START_SECONDS), "the wire does not answer"
        port = made[0].getsockname()[1]
        self.weather[port] = weather
        return made[0], f"http://{FAR}:{port}/"

    @property
    def wrap(self) -> list[str]:
        """What to put before a command that is to run in the namespace."""
        return [sys.executable, "-I", "-S", __file__, str(self.namespace)]

    def _stop(self) -> None:
        os.write(self._end, b".")
        self._thread.join(START_SECONDS)
        os.close(self._over)
        os.close(self._end)

    def _run(self) -> None:
        try:
            tun = self._make()
        except (OSError, subprocess.CalledProcessError) as error:
            self._problem = error
            return
        finally:
            self._ready.set()
        try:
            self._carry(tun)
        finally:
            os.close(tun)

    def _make(self) -> int:
        """Give this thread, and no other, a network of its own; returns the wire's descriptor."""
        _check(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET), "unshare")
        self.namespace = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net")
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        for device in ("all", DEVICE):
            # Addresses of 127.0.0.0/8 on a device that is not the loopback.
            Path(f"/proc/sys/net/ipv4/conf/{device}/route_localnet").write_text("1")
            Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter").write_text("0")
        for words in (
            "link set lo up",
            f"link set {DEVICE} up",
            f"address add {NEAR}/32 dev {DEVICE}",
            f"route add {FAR}/32 dev {DEVICE} src {NEAR} table local",
        ):
            subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)
        return tun

    def _carry(self, tun: int) -> None:
        """Pass packets on, each at its time, until the end."""
        under_way: list[tuple[float, int, bytes]] = []
        numbers = itertools.count()
        while True:
            now = time.monotonic()
            while under_way and under_way[0][0] <= now:
                os.write(tun, heapq.heappop(under_way)[2])
            wait = max(0.0, under_way[0][0] - now) if under_way else None
            readable, _, _ = select.select([tun, self._over], [], [], wait)
            if self._over in readable:
                if os.read(self._over, 1) == b".":
                    return
                make, done = self._asked.pop()
                make()
                done.set()
            if tun in readable:
                packet = os.read(tun, 65536)
                for delay, one in self._fate(packet):
                    heapq.heappush(under_way, (time.monotonic() + delay, next(numbers), one))

    def _fate(self, packet: bytes) -> list[tuple[float, bytes]]:
        """What becomes of a packet: what is delivered, and after how many seconds."""
        if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return []
        segment = (packet[0] & 15) * 4
        ports = struct.unpack_from("!HH", packet, segment)
        port = next((one for one in ports if one in self.weather), 0)
        weather = self.weather.get(port, Weather())
        flags = packet[segment + 13]
        data = len(packet) - segment - (packet[segment + 12] >> 4) * 4
        to_listener = ports[1] == port
        opening = flags & SYN and not flags & ACK
        if to_listener and ((weather.refuse and opening) or (weather.reset and data)):
            return [(0.0, _reset(packet, segment, data + (1 if opening else 0)))]
        if self._chance.random() < weather.loss:
            self.lost[port] += 1
            return []
        self.carried[port] += 1
        return [(weather.delay, packet[:12] + packet[16:20] + packet[12:16] + packet[20:])]


def _reset(packet: bytes, segment: int, length: int) -> bytes:
    """The answer of a host that wants nothing of this: RST, in the packet's own sequence."""
    source, destination = packet[12:16], packet[16:20]
    from_port, to_port, sequence, acknowledged = struct.unpack_from("!HHII", packet, segment)
    tcp = struct.pack(
        "!HHIIBBHHH",
        *(to_port, from_port, acknowledged, (sequence + length) & 0xFFFFFFFF),
        *(5 << 4, RST | ACK, 0, 0, 0),
    )
    pseudo = destination + source + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", _checksum(pseudo + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0)
    ip += destination + source
    return ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + tcp


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def main(namespace: str, *command: str) -> None:
    with open(namespace) as opened:
        _check(ctypes.CDLL(None, use_errno=True).setns(opened.fileno(), CLONE_NEWNET), "setns")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
