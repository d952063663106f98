import sys

import numpy as np
import pytest

from preqn_jax.settings import SettingError
from preqn_jax.training import plots, presets, workdir
from preqn_jax.training.reporters import EventsRecord, MetricsTable, RunReporter, Terminal, UpdatesRecord

CONFIG = presets.get_config("preqn_hopper")


def burst(value, updates=2, seeds=3):
    return {"q": np.full((seeds, updates), float(value))}


def read(folder):
    files = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npz"))]
    return {name: np.concatenate([file[name] for file in files], axis=1) for name in ("step", "q")}


def test_every_update_is_kept_once_also_across_a_restart(tmp_path):
    record = UpdatesRecord(tmp_path / "updates", first_step=0)
    for step in (50, 100, 150):
        record.add(step, burst(step))
        if step == 100:
            record.write()
    record.write()
    again = UpdatesRecord(tmp_path / "updates", first_step=100)  # its checkpoint was older than its last words
    again.add(150, burst(-150))
    again.write()
    again.write()  # nothing new: nothing written
    rows = read(tmp_path / "updates")
    np.testing.assert_array_equal(rows["step"], [[50, 50, 100, 100, 150, 150]])
    np.testing.assert_array_equal(rows["q"], np.broadcast_to([50, 50, 100, 100, -150, -150], (3, 6)))


def test_an_evaluation_that_is_reported_again_takes_the_place_of_the_first(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv", first_step=0)
    for step, value in ((10, 1.0), (20, 2.0)):
        table.append([{"step": step, "seed": seed, "return_mean": value} for seed in (0, 1)])
        table.write()
    again = MetricsTable(tmp_path / "metrics.csv", first_step=20)
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 5
    again.append([{"step": 20, "seed": seed, "return_mean": 3.0} for seed in (0, 1)])
    again.write()
    assert (tmp_path / "metrics.csv").read_text() == "step,seed,return_mean\n10,0,1\n10,1,1\n20,0,3\n20,1,3\n"


def test_evaluations_that_the_table_lacks_are_reported_when_a_run_resumes(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("step,seed,return_mean\n10000,0,1\n30000,0,1\n")
    RunReporter(tmp_path, CONFIG, 20_000)  # the evaluation of the checkpoint's own step may not have been written
    assert capsys.readouterr().err == ""
    RunReporter(tmp_path, CONFIG, 40_000)
    assert capsys.readouterr().err.startswith(
        f"warning: {tmp_path / 'metrics.csv'} lacks 1 evaluation(s) before the checkpoint, the first of step 20000"
    )


def test_steps_of_long_runs_are_written_in_full(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv", first_step=0)
    for step in (100_000_000, 200_000_050):
        table.append([{"step": step, "seed": 0, "return_mean": np.float32(1.0)}])
        table.write()
    assert (tmp_path / "metrics.csv").read_text() == "step,seed,return_mean\n100000000,0,1\n200000050,0,1\n"
    assert plots.last_step(tmp_path / "metrics.csv") == 200_000_050


def test_evaluations_that_only_some_runs_have_are_left_out_of_figures(tmp_path, capsys):
    table = lambda *steps: np.rec.fromarrays([np.array(steps, float), np.arange(len(steps))], names="step,return_mean")  # noqa: E731
    one, two = plots.at_common_steps([table(100, 200, 300), table(200, 300)])
    np.testing.assert_array_equal(one["return_mean"], [1, 2])
    np.testing.assert_array_equal(two["return_mean"], [0, 1])
    assert capsys.readouterr().err == "warning: 1 evaluation(s) are left out, since only some runs have them\n"


def test_the_updates_before_a_checkpoint_are_on_disk_before_it(tmp_path):
    reporter = RunReporter(tmp_path, presets.override(CONFIG, "record_updates=true"), 0)
    reporter.progress(50, burst(50))
    reporter.checkpoint()
    np.testing.assert_array_equal(read(tmp_path / "updates")["step"], [[50, 50]])
    reporter.close()


def test_events_up_to_the_step_of_a_restart_are_kept_beside_the_configuration(tmp_path):
    workdir.claim(tmp_path / "run", CONFIG).close()
    record = EventsRecord(tmp_path / "run", first_step=0)
    for step in (50, 150):
        record.add({"event": "resumed with a new episode", "step": step, "seeds": [0]})
        record.write()
    workdir.write_record(tmp_path / "run", CONFIG)
    assert [event["step"] for event in workdir.read_json(tmp_path / "run" / "config.json")["events"]] == [50, 150]
    EventsRecord(tmp_path / "run", first_step=100)
    content = workdir.read_json(tmp_path / "run" / "config.json")
    assert [event["step"] for event in content["events"]] == [50]
    assert content["config"]["env"]["id"] == "Hopper-v5"


ROWS = [{"step": 10, "seed": 0, "return_mean": 1.5}]


def reporter(folder, capsys):
    """Of a run, and what it has said since the last time."""
    return RunReporter(folder, CONFIG, 0), lambda: capsys.readouterr().err.splitlines()


def report(reporter, step):
    reporter.evaluation([{**ROWS[0], "step": step}])


def fail(*arguments, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("preqn_jax.training.plots.save", "learning_curve.png"),
        ("preqn_jax.training.plots.new_figure", "learning_curve.png"),
        ("preqn_jax.training.reporters.EventsWriter.flush", "TensorBoard's events"),
        ("preqn_jax.training.reporters.EventsWriter.__init__", "TensorBoard's events"),
    ],
)
def test_what_cannot_be_written_is_one_warning_and_the_rest_is_written(broken, what, tmp_path, monkeypatch, capsys):
    report_to, said = reporter(tmp_path, capsys)
    with monkeypatch.context() as patched:
        patched.setattr(broken, fail)
        report(report_to, 10)
        assert (
            said()
            == [
                f"warning: {what} could not be written ([Errno 28] No space left on device); the run continues",
                "step 10: return 1.5",
            ][:: 1 if "Tensor" in what else -1]
        )
        report(report_to, 20)
        assert said() == ["step 20: return 1.5"]
    report(report_to, 30)
    report_to.close()
    assert said() == ["step 30: return 1.5"]
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 4
    assert (tmp_path / "learning_curve.png").exists()
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == (3 if broken.endswith("flush") else 1)  # what is half written is not written on
    written = b"".join(path.read_bytes() for path in files)
    assert written.count(b"seed_0/return_mean") >= 3


def test_rows_that_could_not_be_written_are_written_with_the_next(tmp_path, monkeypatch, capsys):
    report_to, said = reporter(tmp_path, capsys)
    with monkeypatch.context() as patched:
        patched.setattr("preqn_jax.training.reporters.replace_file", fail)
        report(report_to, 10)
        assert "warning: metrics.csv could not be written" in said()[0]
    report(report_to, 20)
    report_to.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,seed,return_mean\n10,0,1.5\n20,0,1.5\n"


def test_a_terminal_that_is_gone_ends_nothing(tmp_path, monkeypatch):
    report_to = RunReporter(tmp_path, CONFIG, 0)
    monkeypatch.setattr(sys.stderr, "write", fail)
    report_to.message("nobody hears this")
    report(report_to, 10)
    report_to.close()
    assert (tmp_path / "metrics.csv").exists()


def test_a_figure_of_a_report_that_cannot_be_drawn_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    lines = {"Hopper-v5": {"preqn": (np.arange(2), np.ones((3, 2)))}}
    assert not plots.curves(lines, tmp_path / "curves.png", "title", "return")
    assert capsys.readouterr().err == "warning: a figure could not be drawn ([Errno 28] No space left on device)\n"


def test_the_terminal_names_the_seeds_that_are_left(capsys):
    terminal = Terminal(total_steps=200, num_seeds=3, first_step=0)
    terminal.evaluation([{"step": 100, "seed": 1, "return_mean": 4.0}, {"step": 100, "seed": 2, "return_mean": 6.0}])
    terminal.close()
    assert "step 100: return 5.0 (seed 1: 4.0, 2: 6.0)" in capsys.readouterr().err


@pytest.mark.parametrize(("runs", "words"), [(1, "title: single runs"), (3, "title: mean over runs, with 95%")])
def test_figures_name_steps_in_thousands_and_intervals_only_where_there_are_any(runs, words, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, out: figures.append(figure))
    lines = {"Hopper-v5": {"preqn": (np.array([100_000, 300_000]), np.ones((runs, 2)))}}
    assert plots.curves(lines, tmp_path / "curves.png", "title", "return")
    assert figures[0].get_suptitle().startswith(words)
    assert figures[0].axes[0].xaxis.get_major_formatter()(300_000) == "300k"


def test_a_table_that_was_begun_with_other_columns_is_left_as_it_is(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,q\n10,1\n")
    with pytest.raises(SettingError, match="columns of another version"):
        MetricsTable(path, first_step=10).append([{"step": 20, "return_mean": 3.0}])
    assert path.read_text() == "step,q\n10,1\n"
