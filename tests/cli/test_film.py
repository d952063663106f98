import dataclasses
import re

import imageio
import numpy as np
import pytest

from preqn_jax.cli import film
from preqn_jax.training import presets
from tests import odd_probes  # noqa: F401  (registers the probes)

pytestmark = pytest.mark.slow


def write(path, env_id, **kwargs):
    config = presets.get_config("preqn_hopper")
    env = dataclasses.replace(config.env, id=env_id, kwargs=kwargs)
    return film.write(
        lambda observation: np.zeros((2, 1, 1)), dataclasses.replace(config, env=env, num_seeds=2), [0], path
    )


@pytest.mark.parametrize("suffix", film.SUFFIXES)
def test_every_picture_of_the_episode_is_in_the_film(suffix, tmp_path, capfd):
    path = tmp_path / f"film{suffix}"
    assert write(path, "Draws-v0")
    assert capfd.readouterr() == (f"video of 4 frames: {path}\n", "")
    frames = np.stack(imageio.mimread(path))
    assert frames.shape == (4, 32, 48, 3)
    reds = frames[..., 0].mean(axis=(1, 2))
    np.testing.assert_allclose(reds, [0, 60, 120, 180], atol=20)  # the format loses some


@pytest.mark.parametrize(
    ("env_id", "kwargs", "says"),
    [
        ("Odd-v0", {}, r"Odd-v0 cannot be rendered: .* \(none\) do not include rgb_array$"),  # nor a render_mode
        ("Gives-v0", {}, "Gives-v0 cannot be rendered"),
        ("CannotDraw-v0", {}, r"rendering failed \(no paint\)$"),
        ("Draws-v0", {"picture": "text"}, r"rendering failed \(.*Draws-v0: render\(\) returned an array of shape \(\)"),
        ("Draws-v0", {"picture": [[0, 1]]}, r"returned an array of shape \(1, 2\) and type int64"),
    ],
)
def test_why_there_is_no_film_is_said_in_one_line_that_blames_the_right_thing(tmp_path, capsys, env_id, kwargs, says):
    assert not write(tmp_path / "film.mp4", env_id, **kwargs)
    output, errors = capsys.readouterr()
    assert (output, list(tmp_path.iterdir())) == ("", [])
    (line,) = errors.splitlines()
    assert line.startswith("no video: ")
    assert "MuJoCo" not in line
    assert re.search(says, line), line


def test_where_mujoco_cannot_draw_the_line_says_what_it_needs(tmp_path, capsys, monkeypatch):
    def no_display(self):
        raise RuntimeError("no display")

    monkeypatch.setattr("gymnasium.envs.mujoco.MujocoEnv.render", no_display)
    film.write(lambda observation: np.zeros((1, 1, 3)), presets.get_config("preqn_hopper"), [0], tmp_path / "film.mp4")
    assert "rendering failed (no display); MuJoCo needs EGL or OSMesa" in capsys.readouterr().err


def test_a_film_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert not write(tmp_path / "film.nonsense", "Draws-v0")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no video: {tmp_path / 'film.nonsense'} cannot be written (")
