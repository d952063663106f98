import contextlib
import resource

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from preqn_jax.training.checkpoint import CheckpointError, Checkpoints

ARRAYS = {"values": np.random.default_rng(0).normal(size=10_000)}


@contextlib.contextmanager
def full_disk():
    """A limit on the size of files stands in for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_the_one_before_and_no_debris(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, ARRAYS)
    with (
        full_disk(),
        pytest.raises(CheckpointError, match=r"^checkpoint checkpoints/20 cannot be written \(File too large\)$"),
    ):
        checkpoints.save(20, ARRAYS)
    assert not caplog.records  # Orbax would log its stack traces
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]
    assert checkpoints.latest_step() == 10
    np.testing.assert_array_equal(checkpoints.restore(10)["values"], ARRAYS["values"])
    checkpoints.save(20, ARRAYS)
    assert checkpoints.latest_step() == 20
    checkpoints.close()


def test_only_the_named_arrays_are_read(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    agent, replay = np.arange(3.0), np.zeros((1000, 2), np.float32)
    checkpoints.save(10, {"agent.w": agent, "agent.none": np.zeros((0, 2)), "replay.rows": replay})
    read, restore = set(), ocp.CheckpointManager.restore

    def restore_and_record(self, step, **options):
        result = restore(self, step, **options)
        read.update(result.get("arrays") or {})
        return result

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore_and_record)
    arrays = checkpoints.restore(10, only="agent.")
    assert read == {"agent.w"}
    np.testing.assert_array_equal(arrays["agent.w"], agent)
    assert arrays["agent.none"].shape == (0, 2)
    assert arrays["replay.rows"] == jax.ShapeDtypeStruct((1000, 2), np.float32)
    checkpoints.close()
