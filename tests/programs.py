"""Programs as a user starts them, where what they compile matters more than its speed."""

import atexit
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]

# Imports once what every program imports, which takes seconds, and runs each program in a fork of itself.
_SERVER = """
import json, os, runpy, signal, sys
import flax.linen, gymnasium.envs.mujoco, matplotlib.pyplot, optax, orbax.checkpoint
import preqn_jax, preqn_jax.agents, preqn_jax.cli.command_line, preqn_jax.training.session

for line in sys.stdin:
    request = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for descriptor, path in enumerate([os.devnull, *request["streams"]]):
        os.dup2(os.open(path, os.O_RDWR), descriptor)
    os.chdir(request["cwd"])
    os.environ.update(request["variables"])
    sys.argv = ["", *request["arguments"]]
    signal.alarm(600)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit()
"""


@functools.cache
def _server():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", _SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    atexit.register(server.communicate)  # which closes its input, and so ends it
    return server


def execute(module, *arguments, cwd, **variables):
    """Runs ``python -m module arguments``; returns exit code, output and errors."""
    name = module if "." in module else f"experiments.{module}"
    server = _server()
    with tempfile.NamedTemporaryFile("r") as output, tempfile.NamedTemporaryFile("r") as errors:
        request = {"module": name, "arguments": arguments, "cwd": str(cwd), "variables": variables}
        print(json.dumps({**request, "streams": [output.name, errors.name]}), file=server.stdin, flush=True)
        return int(server.stdout.readline()), output.read(), errors.read()


def assert_refused(module, arguments, says, folder):
    """One line, exit code 2, and nothing written beside what somebody else has there."""
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.tex").write_text("precious")
    code, _, errors = execute(module, *arguments, cwd=folder)
    assert code == 2
    assert says in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert [path.name for path in folder.iterdir()] == ["occupied"]
