"""System calls that no job needs, refused by the kernel: what they reach has been its weak spots.

A filter of this process and all that it starts, in classic BPF. libseccomp would write the same few
instructions; its Python binding is in no package index that is kept up.
"""

import ctypes
import os
import platform
import socket
import struct

_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000
_EPERM = 1
#: Numbers from here on are calls of another kind (x32) on x86-64.
_OTHER_KIND = {"x86_64": 0x40000000}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: Machine -> number of `socket`.
_SOCKET = {"x86_64": 41, "aarch64": 198}
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
#: Calls by their numbers: on x86-64, on arm64.
_REFUSED = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "fanotify_init": (300, 262),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "setns": (308, 268),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def refuse_calls() -> None:
    """Have the kernel refuse calls that no job needs, in this process and all that it starts.

    They end in EPERM, as do sockets of any family but the network's and the local one. Nothing
    happens on a processor whose numbers are not known here.

    Raises:
        OSError: The kernel takes no filter.
    """
    code = _filter(platform.machine())
    if not code:
        return
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_SECCOMP) failed: {os.strerror(error)}")


def _filter(machine: str) -> bytes:
    """Write the filter for a kind of processor; none where its numbers are not known."""
    if machine not in _ARCHITECTURES:
        return b""
    column = list(_ARCHITECTURES).index(machine)
    refused = [numbers[column] for numbers in _REFUSED.values()]
    # (operation, value, steps to skip where it holds, and where not); the last two are the ends.
    steps: list[tuple[int, int, str, str]] = [
        (_LOAD, _ARCHITECTURE, "", ""),
        (_EQUAL, _ARCHITECTURES[machine], "", "refuse"),
        (_LOAD, _NUMBER, "", ""),
    ]
    if machine in _OTHER_KIND:
        steps.append((_AT_LEAST, _OTHER_KIND[machine], "refuse", ""))
    steps += [(_EQUAL, number, "refuse", "") for number in refused]
    steps += [(_EQUAL, _SOCKET[machine], "", "allow"), (_LOAD, _FIRST_ARGUMENT, "", "")]
    steps += [(_EQUAL, family, "allow", "") for family in _FAMILIES]
    ends = {"refuse": len(steps), "allow": len(steps) + 1}
    code = b""
    for place, (operation, value, then, otherwise) in enumerate(steps):
        skips = [ends[name] - place - 1 if name else 0 for name in (then, otherwise)]
        code += struct.pack("=HBBI", operation, *skips, value)
    code += struct.pack("=HBBI", _RETURN, 0, 0, _REFUSE | _EPERM)
    return code + struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)
