"""One run in its work directory."""

import dataclasses
import shutil

import pytest

from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError
from preqn_jax.training import policy, presets, session
from preqn_jax.training.checkpoint import CheckpointError, Checkpoints
from preqn_jax.training.host import HostTrainer
from preqn_jax.training.reporters import RunReporter
from preqn_jax.training.workdir import claim
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


@pytest.mark.parametrize(
    ("failing", "remedy"),
    [([200], "the same command resumes from step 100"), ([100, 200], "there is no earlier checkpoint")],
)
def test_a_last_checkpoint_that_cannot_be_written_ends_in_a_line_with_the_remedy(
    failing, remedy, tmp_path, monkeypatch, capsys
):
    save = Checkpoints.save

    def fail(checkpoints, step, *arguments):
        if step in failing:
            raise CheckpointError("the checkpoint cannot be written (No space left on device)")
        save(checkpoints, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", fail)
    assert session.guarded(lambda: int(train(config(), tmp_path)), tmp_path) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: the checkpoint cannot be written (No space left on device); {remedy}"


def test_the_record_is_that_of_the_latest_start_even_if_the_one_before_has_no_checkpoint(tmp_path):
    claim(tmp_path, config(total_steps=100)).close()  # a process that was killed while it compiled
    assert train(config(), tmp_path)
    assert presets.read_config(tmp_path)["total_steps"] == 200


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The work directory of a run that is complete."""
    folder = tmp_path_factory.mktemp("run") / "ended"
    assert train(config(), folder)
    return folder


@pytest.fixture
def copy(ended, tmp_path):
    return shutil.copytree(ended, tmp_path / "copy")


def train(configuration, folder):
    reporter = lambda step: RunReporter(folder, configuration, step)  # noqa: E731
    return session.train(HostTrainer(configuration), folder, reporter, lambda: False)


@pytest.mark.parametrize("total_steps", [200, 1000])
def test_results_whose_checkpoints_are_gone_are_not_overwritten(total_steps, copy):
    before = (copy / "metrics.csv").read_text()
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(SettingError, match=r"results up to step 200 in metrics\.csv, but no checkpoint"):
        train(config(total_steps=total_steps), copy)
    assert (copy / "metrics.csv").read_text() == before


def test_evaluations_before_the_first_checkpoint_are_repeated(copy):
    early = (copy / "metrics.csv").read_text().splitlines(keepends=True)[:2]
    shutil.rmtree(copy)
    configuration = config(evaluate_every=50)
    session.claim(copy, configuration).close()
    (copy / "metrics.csv").write_text("".join(early).replace("\n100,", "\n50,"))
    assert train(configuration, copy)


@pytest.mark.parametrize("content", ["step;seed;return_mean\n100;0;1.5\n", "", "step,seed,return_mean\n100,0,1"])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_damaged_table_is_refused(checkpoints, content, copy):
    (copy / "metrics.csv").write_text(content)
    if not checkpoints:
        shutil.rmtree(copy / "checkpoints")
    with pytest.raises(SettingError, match=r"metrics\.csv is damaged; move it away"):
        train(config(total_steps=300), copy)
    assert (copy / "metrics.csv").read_text() == content


@pytest.mark.parametrize(("path", "before", "after"), [("gamma", "0.5", "0.9"), ("activation", "sin", "relu")])
def test_a_checkpoint_is_not_used_with_another_configuration(path, before, after, copy):
    edited = presets.override(config(), f"agent.{path}={after}")
    session.write_record(copy, edited)
    says = rf"config\.json has agent\.{path}={after}, but checkpoint 200 was written with agent\.{path}={before}"
    with pytest.raises(SettingError, match=says):
        train(dataclasses.replace(edited, total_steps=400), copy)
    with pytest.raises(SettingError, match=says):
        policy.read_checkpoint(copy, edited)
    longer = dataclasses.replace(config(), total_steps=400)
    session.write_record(copy, longer)
    assert policy.read_checkpoint(copy, longer).step == 200
