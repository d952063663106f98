import os
import subprocess
import sys

from tests.programs import ROOT

PROGRAM = """
from preqn_jax.cli import compilation
compilation.keep()
import jax
jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((8, 8)))
"""


def test_what_was_compiled_is_kept_without_being_asked(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    del environment["JAX_COMPILATION_CACHE_DIR"]  # of the tests
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=100)
    assert list((tmp_path / "preqn_jax" / "compiled").iterdir())
