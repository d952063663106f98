"""The benchmark of growth: which sizes are measured, which are skipped, and what the table and the figure say."""

import json

import pytest
from matplotlib.figure import Figure

from benchmarks import cells
from benchmarks.cells import GRAM, PER_EXAMPLE, PREQN, SAC, Cell
from preqn_jax.training.memory import GIB
from tests.programs import execute

SMALLEST = Cell(64, 256, 2)


def test_all_minibatches_with_all_widths_and_the_other_depths():
    chosen = cells.cells(1024, 2048, 4)
    assert len(chosen) == len(set(chosen)) == 5 * 4 + 2
    assert Cell(1024, 2048, 2) in chosen
    assert Cell(256, 256, 4) in chosen
    assert cells.cells(64, 256, 4) == [SMALLEST]
    assert cells.cells(256, 256, 3)[-1] == Cell(256, 256, 3)


def test_what_does_not_fit_is_skipped_and_says_why():
    large = Cell(1024, 2048, 2)
    assert cells.skipped_of(SMALLEST, GIB) == {}
    assert cells.skipped_of(large, 16 * GIB) == {PER_EXAMPLE: "needs about 49.1 GiB, but 16.0 GiB are available"}
    assert cells.skipped_of(large, 100 * GIB) == {PER_EXAMPLE: "takes 9021 GFLOP per update"}
    assert set(cells.skipped_of(large, GIB // 100)) == {PREQN, SAC, PER_EXAMPLE, GRAM}
    section = cells.measure_cell(large, repeats=1, available=1000)
    assert section.lines[0].startswith("skipped: PreQN, which needs about 0.5 GiB, but 0.0 GiB are available")


def records():
    def record(**ms):
        names = {"preqn": PREQN, "sac": SAC, "gram": GRAM}
        timings = {names[name]: {"ms": value} for name, value in ms.items()}
        return {"timings": timings, "temporary_bytes": {PREQN: 2e6}, "gram_share": ms["gram"] / ms["preqn"]}

    return {
        SMALLEST: record(preqn=2.0, sac=3.0, gram=0.5),
        Cell(1024, 256, 2): record(preqn=40.0, sac=30.0, gram=30.0),
        Cell(1024, 2048, 2): {},
    }


def test_the_table_names_where_the_gram_matrix_is_the_larger_part():
    lines = cells.document(records()).splitlines()
    assert lines[2] == "| 64 | 256 | 2 | 2.00 | 3.00 | skipped | 0.50 | 25% | 8% | 2.0 |  |  |"
    assert lines[4].startswith("| 1024 | 2048 | 2 | skipped | skipped")
    where = "B = 1024 with width 256 and depth 2."
    assert lines[-1] == f"The Gram matrix takes more than half of PreQN's update at: {where}"


def test_the_figure_has_every_measured_size(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    cells.draw(records(), tmp_path / "growth.png")
    over_batches, over_widths, *_, share = figures[0].axes[:6]
    assert {line.get_label(): list(line.get_ydata()) for line in over_batches.lines}[PREQN] == [2.0, 40.0]
    assert all(len(line.get_xdata()) == 0 for line in over_widths.lines)
    assert [text.get_text() for text in share.texts] == ["25%", "75%"]


@pytest.mark.slow
def test_the_program_measures_each_size_once(tmp_path):
    arguments = ["--max-batch-size=64", "--max-width=256", "--repeats=1", "--out=results"]
    code, output, errors = execute("benchmarks.growth", *arguments, cwd=tmp_path)
    assert code == 0, errors
    assert f"[1/1] {SMALLEST.name}" in errors
    saved = tmp_path / "results" / f"{SMALLEST.name}.json"
    (section,) = json.loads(saved.read_text())["sections"]
    assert section["temporary_bytes"][PER_EXAMPLE] > 4 * 64 * SMALLEST.parameters() / 2
    assert set(section["timings"]) == {PREQN, SAC, PER_EXAMPLE, GRAM}
    assert (tmp_path / "results" / "growth.png").stat().st_size > 10_000
    first = saved.read_text()

    code, output, errors = execute("benchmarks.growth", *arguments, cwd=tmp_path)
    assert code == 0, errors
    assert "1 of 1 sizes are in results already" in output
    assert "| 64 | 256 | 2 |" in output
    assert saved.read_text() == first
