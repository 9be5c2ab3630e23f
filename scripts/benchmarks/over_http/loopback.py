"""Turn loopback on in a new network namespace, then become the given command.

unshare -n python -m scripts.benchmarks.over_http.loopback COMMAND ARGUMENT ...
"""

import fcntl
import os
import socket
import struct
import sys

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # netdevice(7)


def turn_on(name: str = "lo") -> None:
    """Turn an interface on, as `ip link set lo up` does; needs root.

    Raises:
        OSError: it is not there, or this process may not.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", name.encode(), 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        request = struct.pack("16sh14x", name.encode(), flags | _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def in_new_namespace(command: list[str]) -> list[str]:
    """Return what runs the command in a network namespace of its own; needs root and `unshare`."""
    return ["unshare", "-n", sys.executable, "-m", __name__, *command]


if __name__ == "__main__":
    turn_on()
    os.execvp(sys.argv[1], sys.argv[1:])
