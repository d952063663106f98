"""The console script."""

import sys
import types

import pytest

from preqn_jax.cli import main, train
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from tests.programs import execute


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "error: trian is not a command; did you mean train? allowed: train, evaluate, sweep\n"),
        (["evaluate"], "error: --workdir is missing; give the work directory of a run\n"),
        (
            ["evaluate", "--workdir=none", "--video=x.txt"],
            "error: --video=x.txt has the suffix .txt; did you mean .mp4? (allowed: .mp4, .mkv, .mov, .avi, .gif)\n",
        ),
        (["evaluate", "--workdir=none", "--video=x.mp3"], "did you mean .mp4?"),
        (["evaluate", "--workdir=none", "--video=."], "--video=. has no suffix"),
        (["evaluate", "--workdir=none", "--video=x.GIF"], "--workdir=none holds no run"),
        (["train", "--config=preqn_hoper"], "did you mean preqn_hopper?"),
        (["sweep", "--num-seds=3"], "did you mean --num-seeds?"),
    ],
)
def test_a_mistake_ends_with_one_line(arguments, says, tmp_path):
    code, output, errors = execute("preqn_jax.cli.main", *arguments, cwd=tmp_path)
    assert (code, output) == (2, "")
    assert says in errors
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_without_a_command_it_names_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["preqn_jax"])
    main.main()
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in main.PROGRAMS)


def test_ctrl_c_during_the_imports_ends_with_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.importlib, "import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["preqn_jax", "train"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_wandb_is_refused_before_anything_is_made_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    monkeypatch.setattr(train, "_WANDB", types.SimpleNamespace(value="mine"))
    monkeypatch.setattr(train, "make_trainer", lambda config: pytest.fail("made a trainer"))
    with pytest.raises(SettingError, match="needs wandb; pip install 'preqn_jax"):
        train.main(presets.get_config("preqn_hopper"))
