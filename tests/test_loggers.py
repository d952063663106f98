import numpy as np
import pytest

from experiments import configs
from experiments.loggers import MetricsTable, RunReporter, UpdatesRecord
from preqn_jax.settings import SettingError


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
    again = MetricsTable(tmp_path / "metrics.csv", first_step=20)
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 5
    again.append([{"step": 20, "seed": seed, "return_mean": 3.0} for seed in (0, 1)])
    assert (tmp_path / "metrics.csv").read_text() == "step,seed,return_mean\n10,0,1\n10,1,1\n20,0,3\n20,1,3\n"


def test_the_updates_before_a_checkpoint_are_on_disk_before_it(tmp_path):
    reporter = RunReporter(tmp_path, configs.override(configs.get_config("preqn_hopper"), "record_updates=true"), 0)
    reporter.progress(50, burst(50))
    reporter.checkpoint()
    np.testing.assert_array_equal(read(tmp_path / "updates")["step"], [[50, 50]])
    reporter.close()


def test_a_table_that_was_begun_with_other_columns_is_left_as_it_is(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,q\n10,1\n")
    with pytest.raises(SettingError, match="columns of another version"):
        MetricsTable(path, first_step=10).append([{"step": 20, "return_mean": 3.0}])
    assert path.read_text() == "step,q\n10,1\n"
