"""The two courses of the built-in model's training do what they are for."""

import dataclasses
import shutil

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from recipes.tutor import courses, train
from recipes.tutor.courses import BEARING, LAST, READING, STEPS
from recipes.tutor.lessons import Lessons
from recipes.tutor.loading import load
from steerkit import LanguageModel


def test_a_course_begins_with_an_epoch() -> None:
    """What a course leaves alone is settled when an epoch begins."""
    assert READING.steps % train.STEPS_PER_EPOCH == 0
    assert STEPS % train.STEPS_PER_EPOCH == 0


@pytest.mark.parametrize("course", [READING, BEARING])
def test_the_learning_rate_warms_up_and_falls_in_either_course(course: courses.Course) -> None:
    rates = [course.learning_rate(step) for step in range(course.steps + 1)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] == pytest.approx(LAST)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[-course.steps // 4 :] == sorted(rates[-course.steps // 4 :], reverse=True)


def test_every_step_belongs_to_one_course() -> None:
    assert courses.at(0) == (READING, 0)
    assert courses.at(READING.steps - 1) == (READING, READING.steps - 1)
    assert courses.at(READING.steps) == (BEARING, 0)
    assert courses.at(STEPS - 1) == (BEARING, BEARING.steps - 1)


@pytest.mark.parametrize("course", [READING, BEARING])
@pytest.mark.parametrize("layer", [0, 3, 9])
def test_pushes_are_bounded_and_met_by_the_course_s_share(course: courses.Course, layer: int) -> None:
    hidden = torch.randn(2000, 3, 16, generator=torch.Generator().manual_seed(0))
    moved = course.push(hidden, layer=layer, chance=torch.Generator().manual_seed(1)) - hidden
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))  # one direction for all tokens of a sample
    sizes = moved[:, 0].norm(dim=-1) / hidden.norm(dim=-1).mean()
    assert float(sizes.max()) <= course.largest_push(layer) + 1e-5
    assert float((sizes > 1e-6).float().mean()) == pytest.approx(course.pushed, abs=0.05)
    assert float(torch.nn.functional.normalize(moved[sizes > 1e-6][:, 0], dim=-1).mean(0).norm()) < 0.1  # any direction


@pytest.mark.filterwarnings("ignore:.*treespec")  # Lightning's own
def test_the_second_course_leaves_what_reads_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courses, "READING", dataclasses.replace(READING, steps=1))
    monkeypatch.setattr(courses, "BEARING", dataclasses.replace(BEARING, steps=2))
    monkeypatch.setattr(train, "STEPS_PER_EPOCH", 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # compiling takes longer than three steps
    states: list[dict[str, torch.Tensor]] = []

    class Snapshots(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            states.append({name: tensor.clone() for name, tensor in pl_module.model.state_dict().items()})

    tokenizer = LanguageModel("builtin:tutor").tokenizer
    torch.manual_seed(0)
    training = train.TutorTraining(train.build_model(tokenizer), Lessons(load(), tokenizer, 0, 4))
    Trainer(
        accelerator="cpu", max_epochs=3, reload_dataloaders_every_n_epochs=1, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Snapshots()],
    ).fit(training)  # fmt: skip
    _, once, twice = states
    changed = {name for name in once if not torch.equal(once[name], twice[name])}
    reads = ("model.embed_tokens", "lm_head", *(f"model.layers.{layer}." for layer in range(BEARING.frozen)))
    assert changed
    assert not [name for name in changed if name.startswith(reads)]
    assert {name.split(".")[2] for name in changed if ".layers." in name} == set("456789")
