"""`hkmap` for the tests of whole scripts: one process loads torch and the rest once, and forks for each command.

`python forking_hkmap.py FOLDER` puts a program `hkmap` there. Whoever runs it has the command run in a fork of this
process: with their arguments, folder, environment, stdin, stdout and stderr, and its exit code is theirs. A script of
twenty commands takes a third of the time, as loading torch is most of what a small command does. This process ends
when its stdin does.

HKMAP_TEST_MEMORY (bytes) and HKMAP_TEST_SECONDS in the environment limit the command, which dies without an answer at
the end of its time.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import torch._dynamo  # noqa: F401  (every optimizer loads it, which takes a second)

import hkmap.evaluation.evaluate
import hkmap.evaluation.prediction
import hkmap.report.sheets
import hkmap.shards.writer  # noqa: F401
from hkmap.cli import main

LONGEST = 1 << 20      # bytes of arguments and environment
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "little")], [0, 1, 2])
    server.sendall(asked)
    for handle in (0, 1):      # a stage before or behind must not wait for this process
        os.close(handle)
    code = server.recv(1)
sys.exit(code[0] if code else "hkmap died")
"""


def run(connection: socket.socket) -> None:
    """Run what is asked for, in this process, and answer with its exit code."""
    length, handles, _, _ = socket.recv_fds(connection, 8, 3)
    asked = bytearray()
    while len(asked) < int.from_bytes(length, "little") <= LONGEST:
        asked += connection.recv(LONGEST)
    arguments, folder, environment = json.loads(asked)
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if memory := int(os.environ.get("HKMAP_TEST_MEMORY", 0)):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    signal.alarm(int(os.environ.get("HKMAP_TEST_SECONDS", 0)))
    sys.argv = ["hkmap", *arguments]
    code = 1      # as Python's own, where a bug ends it with a traceback
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        connection.sendall(bytes([code]))


def serve(folder: Path) -> None:
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        client = folder / "hkmap"
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        print("ready", flush=True)
        while listener in select.select([listener, 0], [], [])[0]:
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                run(connection)
                os._exit(0)
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    serve(Path(sys.argv[1]))
