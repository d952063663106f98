"""Draws the effect of one update on Q, which is the idea of PreQN: ``python -m experiments.kernel_picture``.

A newly initialized critic with one state and one action variable is updated for six TD errors. A gradient step changes
Q everywhere, as given by the kernel K; PreQN solves K z = delta first. ``--out`` receives kernel_picture.png.
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import flags

from experiments.studies.idea.one_update import STEP_SIZE, Measured, measure
from preqn_jax.cli import command_line, lists
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.training import plots
from preqn_jax.training.workdir import results_folder

_ACTIVATION = flags.DEFINE_string(
    "activation", "sin", f"activation function of the critic; allowed: {', '.join(ACTIVATIONS)}"
)
_SEED = flags.DEFINE_integer("seed", 0, "seed of the critic and of the TD errors", lower_bound=0)
_OUT = flags.DEFINE_string("out", "runs/kernel_picture", "directory for the figure")


def main() -> int:
    """Computes the updates and draws the figure; returns the exit code."""
    lists.check_names("--activation", [_ACTIVATION.value], list(ACTIVATIONS))
    out = results_folder(_OUT.value)
    measured = measure(_ACTIVATION.value, _SEED.value)
    print(f"alignment cos(Q' - Q, delta): gradient step {measured.gradient.alignment:.3f}, "
          f"PreQN {measured.preqn.alignment:.3f}")  # fmt: skip
    drawn = _draw(measured, out / "kernel_picture.png")
    print(f"saved to {out / 'kernel_picture.png'}" if drawn else "no figure: matplotlib is missing, or drawing failed")
    return 0


@plots.harmless
def _draw(measured: Measured, path: pathlib.Path) -> bool:
    if (figure := plots.new_figure(12, 3.6)) is None:
        return False
    kernel, *others = figure.subplots(1, 3)
    diagonal = np.sqrt(np.diagonal(measured.gram))
    image = kernel.imshow(measured.gram / np.outer(diagonal, diagonal), cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=kernel)
    kernel.set(title="K of the minibatch, normalized", xlabel="error at state j", ylabel="moves Q at state i")
    for axes, name, step in zip(others, ("Gradient step", "PreQN"), (measured.gradient, measured.preqn), strict=True):
        axes.plot(measured.grid, step.elsewhere, color="C0", label="change of Q")
        axes.vlines(measured.state, 0, STEP_SIZE * measured.td_error, color="C1", linewidth=1)
        axes.plot(measured.state, STEP_SIZE * measured.td_error, "o", color="C1", label="a quarter of the TD error")
        axes.plot(measured.state, step.change, "x", color="C0")
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set(title=f"{name}: alignment {step.alignment:.2f}", xlabel="state", ylim=_limits(measured))
        axes.legend(frameon=False, fontsize="small")
        plots.dress(axes)
    plots.save(figure, path)
    return True


def _limits(measured: Measured) -> tuple[float, float]:
    most = 1.6 * np.abs(np.concatenate([STEP_SIZE * measured.td_error, measured.preqn.change])).max()
    return -most, most


if __name__ == "__main__":
    command_line.run(main)
