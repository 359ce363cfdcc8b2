"""A stopped training goes on as if nothing had happened; a restart is done once."""

from dataclasses import replace

import pytest

from pfiles.errors import InputError
from pfiles.learning import autoencoder, clusters, loop
from pfiles.settings import SavingSettings
from tests.conftest import autoencoder_networks, stage_networks, train_autoencoder, train_stage
from tests.learning.conftest import equal


class StoppedError(Exception):
    pass


def stop_after(monkeypatch, module, calls):
    """Stop the training in the middle of an epoch, as a kill would."""
    original, count = module.to_unit, [0]

    def counted(images):
        count[0] += 1
        if count[0] > calls:
            raise StoppedError
        return original(images)

    monkeypatch.setattr(module, "to_unit", counted)


def test_a_stopped_autoencoder_training_goes_on_exactly(tiny, images, job, tmp_path, monkeypatch):
    settings = replace(tiny.autoencoder, epochs=4)
    perceptual = autoencoder.make_perceptual(settings, "cpu")
    whole = autoencoder_networks(tiny)
    history = train_autoencoder(whole, images, perceptual, settings, job)

    broken = replace(job, folder=tmp_path / "broken", saving=SavingSettings(every_minutes=0))
    with monkeypatch.context() as patch:
        stop_after(patch, autoencoder, 11)
        with pytest.raises(StoppedError):
            train_autoencoder(autoencoder_networks(tiny), images, perceptual, settings, broken)
    again = autoencoder_networks(tiny)
    resumed = train_autoencoder(again, images, perceptual, settings, broken)
    assert equal(whole[0], again[0])
    assert equal(whole[1], again[1])
    timing = dict.fromkeys(("seconds", "images_per_second", "memory_gb"), 0)
    for a, b in zip(history, resumed, strict=True):
        assert {**a, **timing} == {**b, **timing}


def test_a_stopped_stage_goes_on_exactly(tiny, images, job, tmp_path, monkeypatch):
    stage = replace(tiny.training, epochs=4)
    whole = stage_networks(tiny)
    train_stage(tiny, stage, whole, images, job)
    broken = replace(job, folder=tmp_path / "broken", saving=SavingSettings(every_minutes=0))
    with monkeypatch.context() as patch:
        stop_after(patch, clusters, 8)
        with pytest.raises(StoppedError):
            train_stage(tiny, stage, stage_networks(tiny), images, broken)
    again = stage_networks(tiny)
    train_stage(tiny, stage, again, images, broken)
    assert equal(whole[1], again[1])
    assert equal(whole[2], again[2])


def test_a_finished_training_returns_at_once_unless_restarted(tiny, images, job, capsys):
    first = stage_networks(tiny)
    train_stage(tiny, tiny.training, first, images, job)
    again = stage_networks(tiny)
    train_stage(tiny, tiny.training, again, images, job)
    assert equal(first[1], again[1])
    assert "test is done already: 1 epochs" in capsys.readouterr().out
    longer = stage_networks(tiny)
    assert len(train_stage(tiny, replace(tiny.training, epochs=2), longer, images, job)) == 2
    capsys.readouterr()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
    assert "done already" not in capsys.readouterr().out


@pytest.fixture
def stopped(monkeypatch):
    """A function that makes the next training stop after so many steps, with a resume point at each; None: at none."""
    step = loop._step

    def stop_after(steps):
        left = [steps]

        def one(*args):
            if left[0] == 0:
                raise StoppedError
            left[0] -= 1
            return step(*args)

        monkeypatch.setattr(loop, "_step", step if steps is None else one)

    return stop_after


def test_a_restart_is_done_once(tiny, images, job, stopped, capsys):
    stage, every = replace(tiny.training, epochs=2), replace(job, saving=SavingSettings(every_minutes=0), restart=True)
    train_stage(tiny, stage, stage_networks(tiny), images, job)
    stopped(4)
    with pytest.raises(StoppedError):
        train_stage(tiny, stage, stage_networks(tiny), images, every)
    stopped(0)
    with pytest.raises(StoppedError):  # at once, and what was begun is still there
        train_stage(tiny, stage, stage_networks(tiny), images, every)
    capsys.readouterr()
    stopped(None)
    train_stage(tiny, stage, stage_networks(tiny), images, every)
    assert "test goes on after step 4 of 6" in capsys.readouterr().out
    train_stage(tiny, stage, stage_networks(tiny), images, every)  # asked for again, after its end
    assert "goes on" not in (printed := capsys.readouterr().out)
    assert "done already" not in printed


def test_a_restart_begins_anew_where_it_was_stopped_before_its_first_step(tiny, images, job, stopped, capsys):
    train_stage(tiny, tiny.training, stage_networks(tiny), images, job)
    stopped(0)
    with pytest.raises(StoppedError):
        train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
    stopped(None)
    capsys.readouterr()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
    assert "test " not in capsys.readouterr().out  # neither goes on nor is done


def test_another_restart_is_not_the_one_that_was_begun(tiny, images, job, stopped, capsys):
    every = replace(job, saving=SavingSettings(every_minutes=0), restart=True)
    stopped(2)
    with pytest.raises(StoppedError):
        train_stage(tiny, tiny.training, stage_networks(tiny), images, every)
    stopped(None)
    train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(every, note={"a": {"b": 2}}))
    assert "goes on" not in capsys.readouterr().out


def test_a_job_that_slurm_put_back_does_not_restart_twice(tiny, images, job, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    for count, number, done in ((None, "17", False), ("1", "17", True), ("1", "18", False), ("0", "18", False)):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        if count is not None:
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, restart=True))
        assert ("done already" in capsys.readouterr().out) == done


def test_a_resume_point_of_another_training_is_refused(tiny, images, job):
    train_stage(tiny, tiny.training, stage_networks(tiny), images, job)
    with pytest.raises(InputError, match=r"a\.b was 1 and is 2"):
        train_stage(tiny, tiny.training, stage_networks(tiny), images, replace(job, note={"a": {"b": 2}}))


def test_a_training_begins_anew_where_its_start_was_trained_since(tiny, images, job, capsys):
    first, second = (replace(job, note={"a": 1, "starts_from": {"unet": name}}) for name in "xy")
    train_stage(tiny, tiny.training, stage_networks(tiny), images, first)
    capsys.readouterr()
    train_stage(tiny, tiny.training, stage_networks(tiny), images, second)
    printed = capsys.readouterr().out
    assert "Starts from the beginning, because what it builds on was trained again (unet)" in printed
    assert "done already" not in printed


def test_a_precision_may_change_on_the_way_and_it_is_said(tiny, images, job, capsys):
    stage = replace(tiny.training, epochs=1)
    note = {"settings": {"precision": "bf16"}}
    train_stage(tiny, stage, stage_networks(tiny), images, replace(job, note=note))
    note = {"settings": {"precision": "fp32"}}
    longer = replace(stage, epochs=2)
    assert len(train_stage(tiny, longer, stage_networks(tiny), images, replace(job, note=note))) == 2
    assert "Goes on in fp32; until here it was bf16" in capsys.readouterr().out
