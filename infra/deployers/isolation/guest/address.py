"""Adds addresses to the sandbox's loopback interface, before privileges are dropped: `address.py ADDRESS …`.

So a service known by its address is reached at that address, through a door: nothing leaves the sandbox directly.
"""

import fcntl
import socket
import struct
import sys

SIOCSIFADDR, SIOCSIFNETMASK = 0x8916, 0x891C
LOOPBACK = 1  # in every network the first interface


def main() -> None:
    for number, text in enumerate(sys.argv[1:]):
        if ":" in text:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
                request = struct.pack("=16sIi", socket.inet_pton(socket.AF_INET6, text), 128, LOOPBACK)
                fcntl.ioctl(control, SIOCSIFADDR, request)
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for what, value in ((SIOCSIFADDR, text), (SIOCSIFNETMASK, "255.255.255.255")):
                name = b"lo:%d" % number
                request = struct.pack("=16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(control, what, request)


main()
