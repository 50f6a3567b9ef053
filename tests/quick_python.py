"""A ``python`` that begins at once: a copy of a process that has imported the packages, which takes seconds.

The tests get it from the fixture ``python`` and start it as they would start ``sys.executable``. What runs is a process
of its own, with its own arguments, environment, folder and output, that can be killed and tells how it ended. Not for
tests of what is imported, or of what must be in the environment when Python begins.
"""

import fcntl
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

PACKAGES = [
    'setuptools', 'torch.distributed.run', 'torch._dynamo', 'torchvision', 'matplotlib.figure',
    'matplotlib.backends.backend_agg', 'mmengine.runner', 'mmpretrain.models', 'mmpretrain.evaluation',
    'mmpretrain.datasets', 'mmpretrain.engine', 'overhaul.commands.train', 'overhaul.commands.test']
PROGRAM = """#!/bin/sh
exec "{python}" -S "{file}" "{address}" "$@"
"""


@contextmanager
def started(folder: Path) -> Iterator[Path]:
    """Give the path of the program; ``folder`` is for it alone."""
    address, program = folder / 'socket', folder / 'python'
    program.write_text(PROGRAM.format(python=sys.executable, file=__file__, address=address))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(16)
        # It ends when nobody holds the other end of its input any more.
        server = subprocess.Popen(
            [sys.executable, '-W', 'ignore', __file__, str(listener.fileno())], stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()])
    yield program
    server.stdin.close()
    server.wait()


def serve(listener: socket.socket) -> None:
    """Import the packages, and run what the program is started with, until the input ends."""
    import torch

    torch.set_num_threads(1)
    for name in PACKAGES:
        import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        asked, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(asked)
            os._exit(0)
        asked.close()


def answer(asked: socket.socket) -> None:
    """Run one process, kill it if who asked for it is killed, and tell how it ended."""
    _, files, *_ = socket.recv_fds(asked, 1, 100)
    with suppress(BrokenPipeError), asked.makefile('rw') as stream:
        process = get_context('fork').Process(target=run, args=(files, json.loads(stream.readline())))
        process.start()
        for file in files:
            os.close(file)
        print(process.pid, file=stream, flush=True)
        while process.exitcode is None:
            if asked in select.select([asked, process.sentinel], [], [], 0.01)[0]:
                process.kill()
            process.join(0)
        if process.exitcode > 0:
            time.sleep(0.5)  # as a python that has loaded as much takes to end, once it has failed
        print(process.exitcode, file=stream)


def run(files: list[int], asked: dict) -> None:
    """Be the process that was asked for."""
    import numpy as np
    import torch

    beyond = max(*files, *asked['files']) + 1
    for number, file in zip(asked['files'], [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, beyond) for file in files]):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0)  # which multiprocessing has closed
    os.chdir(asked['folder'])
    os.environ.clear()
    os.environ.update(asked['environment'])
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())))
    random.seed()
    np.random.seed()
    sys.path[:1] = filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))
    arguments = asked['arguments']
    while arguments[0] in ('-u', '-B', '-W'):
        if arguments.pop(0) == '-W':
            warnings._setoption(arguments.pop(0))
    if arguments[0] == '-m':
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
    elif arguments[0] == '-c':
        sys.argv = ['-c', *arguments[2:]]
        exec(arguments[1], {'__name__': '__main__'})
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name='__main__')


def ask(address: str, arguments: list[str]) -> None:
    """Be the program: have a process run, hand on what would end it, and end as it ends."""
    files = [int(name) for name in os.listdir('/dev/fd') if Path('/dev/fd', name).exists()]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b'.'], files)
        with server.makefile('rw') as stream:
            asked = dict(arguments=arguments, folder=os.getcwd(), environment=dict(os.environ), files=files)
            print(json.dumps(asked), file=stream, flush=True)
            process = int(stream.readline())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, _: os.kill(process, number))
            status = int(stream.readline())
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == '__main__':
    if sys.argv[1].isdigit():
        serve(socket.socket(fileno=int(sys.argv[1])))
    else:
        ask(sys.argv[1], sys.argv[2:])
