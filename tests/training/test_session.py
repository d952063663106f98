"""One run in its work directory."""

import dataclasses

import pytest

from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError
from preqn_jax.training import session
from preqn_jax.training.checkpoint import Checkpoints
from preqn_jax.training.host import HostTrainer
from tests import odd_probes  # noqa: F401  (registers the probes)
from tests.training.host_runs import config
from tests.training.runs import Recorder

pytestmark = pytest.mark.slow


class ClosingRecorder(Recorder):
    def __init__(self, step):
        super().__init__()
        self.first_step = step

    def close(self):
        pass


@pytest.mark.parametrize(("steps", "kept"), [(70, 50), (40, 0)])
def test_an_environment_that_fails_in_the_middle_costs_the_steps_since_the_checkpoint(steps, kept, tmp_path):
    env = EnvConfig("Raises-v0", kwargs={"after": steps}, time_limit=10)
    configuration = dataclasses.replace(config(checkpoint_every=50), env=env)
    with pytest.raises(SettingError) as caught:
        session.train(HostTrainer(configuration), tmp_path, ClosingRecorder, lambda: False)
    line = str(caught.value)
    assert "step() raised RuntimeError" in line
    assert line.endswith(f", in step {steps} of the run; the same command resumes from step {kept}")
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).latest_step() == (kept or None)
