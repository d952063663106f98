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


def trained_by(trainer, arrays=None, stop_at=None, should_stop=None):
    """Compiles a trainer, restores it from arrays if there are any, and runs it.

    Returns:
      The trainer, its reporter, the arrays of its checkpoints by step, and whether the run is complete.
    """
    recorder, saved = Recorder(), {}
    trainer.compile()
    if arrays is not None:
        trainer.restore(arrays)
    finished = run(
        trainer,
        recorder,
        save=lambda t: saved.setdefault(t.step, {name: np.array(a) for name, a in t.arrays().items()}),
        should_stop=should_stop or (lambda: trainer.step == stop_at),
    )
    return trainer, recorder, saved, finished
