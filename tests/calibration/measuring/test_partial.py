from dataclasses import replace

import pytest

from calibration.measuring.campaign import CHOSEN, Visit
from calibration.measuring.design import Point
from calibration.measuring.measure import Step
from calibration.measuring.partial import EXPERIMENT, VISITS, Partial
from traces.errors import ConfigError

IDENTITY = {"device": "Toy", "seed": 1, "engine": {"dtype": "fp32", "scheduler": {"n": 4}}}
STEP = Step(3, 300, 1, 64, 128, 5000, 0, 0.25, 0.1)
VISIT = Visit(CHOSEN, Point(3, 100, 0.9, 1, 64, 64), (STEP, replace(STEP, time_s=1 / 3)), 1.5, 2.5)


def test_visits_come_back_as_they_were(tmp_path):
    folder = tmp_path / "p.yaml.part"
    first = Partial(folder, IDENTITY, None)
    assert first.visits == []
    first.append(VISIT)
    first.append(replace(VISIT, stage="serving, 4 at once", point=Point()))
    again = Partial(folder, IDENTITY, None)
    assert again.visits == first.visits
    assert Partial(folder, IDENTITY, False).visits == first.visits


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_line_that_was_cut_off_is_dropped(tmp_path, cut):
    folder = tmp_path / "part"
    first = Partial(folder, IDENTITY, None)
    first.append(VISIT)
    first.append(VISIT)
    lines = folder / VISITS
    lines.write_bytes(lines.read_bytes()[:-cut])
    second = Partial(folder, IDENTITY, None)
    assert second.visits == [VISIT]
    second.append(VISIT)
    assert Partial(folder, IDENTITY, None).visits == [VISIT, VISIT]


def test_another_experiment_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "part"
    Partial(folder, IDENTITY, None).append(VISIT)
    other = {**IDENTITY, "engine": {"dtype": "fp32", "scheduler": {"n": 8}}}
    with pytest.raises(ConfigError) as refused:
        Partial(folder, other, None)
    assert str(refused.value) == (
        f"{folder}: is of a calibration with engine.scheduler.n: 4, now it is 8;"
        " --fresh discards it"
    )
    assert Partial(folder, IDENTITY, None).visits == [VISIT]
    assert Partial(folder, other, True).visits == []


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="--resume: there is nothing to go on from"):
        Partial(tmp_path / "part", IDENTITY, False)


@pytest.mark.parametrize("fresh", [None, True])
def test_what_is_not_ours_is_never_touched(tmp_path, fresh):
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex"):
        Partial(folder, IDENTITY, fresh)
    assert (folder / "thesis.tex").exists()


def test_an_unreadable_identity_is_another_experiment(tmp_path):
    folder = tmp_path / "part"
    Partial(folder, IDENTITY, None)
    (folder / EXPERIMENT).write_text("a: [")
    with pytest.raises(ConfigError, match="--fresh discards it"):
        Partial(folder, IDENTITY, None)


def test_removing_leaves_nothing(tmp_path):
    kept = Partial(tmp_path / "part", IDENTITY, None)
    kept.append(VISIT)
    kept.remove()
    assert list(tmp_path.iterdir()) == []
