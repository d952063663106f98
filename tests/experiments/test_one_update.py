import numpy as np
import pytest

from experiments.studies.idea.one_update import STEP_SIZE, measure
from tests import oracles

pytestmark = pytest.mark.slow


def test_preqn_moves_q_as_asked_where_a_gradient_step_does_not():
    measured = measure("sin", seed=0)
    for step in (measured.gradient, measured.preqn):
        np.testing.assert_allclose(step.alignment, oracles.cosine(step.change, measured.td_error), atol=1e-5)
    assert measured.preqn.alignment >= 0.97 > 0.5 > measured.gradient.alignment
    asked = STEP_SIZE * measured.td_error
    assert np.linalg.norm(measured.preqn.change - asked) < 0.2 * np.linalg.norm(asked)
