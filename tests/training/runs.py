"""Short runs, and a reporter that keeps what they report."""

import numpy as np

from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.training.loop import run

AGENT = PreQNConfig(hidden_sizes=(16, 16), gamma=0.5)
SCHEDULE = {
    "total_steps": 200,
    "start_steps": 50,
    "update_after": 50,
    "update_every": 10,
    "batch_size": 16,
    "replay_capacity": 150,  # so that it wraps
    "evaluate_every": 100,
    "evaluate_episodes": 2,
    "checkpoint_every": 100,
}


class Recorder:
    """A Reporter that keeps everything."""

    def __init__(self):
        self.rows, self.messages, self.steps, self.events = [], [], [], []

    def message(self, text):
        self.messages.append(text)

    def checkpoint(self):
        pass

    def event(self, event):
        self.events.append(event)

    def progress(self, step, latest):
        self.steps.append(step)

    def evaluation(self, rows):
        self.rows += rows


def trained_by(trainer, arrays=None, **stops):
    """Compiles a new trainer and runs it; see :func:`run_compiled`."""
    trainer.compile()
    return run_compiled(trainer, arrays, **stops)


def run_compiled(trainer, arrays=None, stop_at=None, should_stop=None):
    """Runs a trainer that is compiled, after restoring it from arrays if there are any.

    Returns:
      The trainer, its reporter, the arrays of its checkpoints by step, and whether the run is complete.
    """
    recorder, saved = Recorder(), {}
    if arrays is not None:
        trainer.restore(arrays)
    finished = run(
        trainer,
        recorder,
        save=lambda t: saved.setdefault(t.step, copied(t.arrays())),
        should_stop=should_stop or (lambda: trainer.step == stop_at),
    )
    return trainer, recorder, saved, finished


def diagnosed_steps(trainer):
    """Runs a new trainer; returns the steps of the run after which it computed kernel diagnostics."""
    trainer.compile()
    diagnose, steps = trainer._diagnose, []
    trainer._diagnose = lambda *arguments: steps.append(trainer.step) or diagnose(*arguments)
    run_compiled(trainer)
    return steps


def copied(arrays):
    """Copies, which later steps of their trainer leave as they are."""
    return {name: np.array(array) for name, array in arrays.items()}


def assert_same(resumed, saved):
    """Checks that the checkpoint of a run that was resumed has the arrays of one that was not."""
    for name, array in saved.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


def check_resume(trainer, stop_at):
    """Checks that a run goes on bit for bit after a stop; one trainer makes all runs and is compiled once.

    What a trainer keeps but does not store would pass this check: new trainers resume in other tests.

    Returns:
      The rows of metrics.
    """
    trainer.compile()
    start = copied(trainer.arrays())
    _, whole, saved, _ = run_compiled(trainer)
    _, first, partial, finished = run_compiled(trainer, start, stop_at=stop_at)
    assert not finished
    _, second, resumed, _ = run_compiled(trainer, partial[stop_at])
    np.testing.assert_equal(first.rows + second.rows, whole.rows)
    assert_same(resumed[max(saved)], saved[max(saved)])
    return whole.rows
