"""The courses of the built-in model's training do what they are for."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from recipes.tutor import courses, train
from recipes.tutor.courses import ANSWERING, BEARING, COURSES, LAST, READING
from recipes.tutor.lessons import BEGINNING, IGNORED, OF_MESSAGE, WEIGHT, Lessons
from recipes.tutor.loading import load
from steerkit import LanguageModel
from steerkit.fingerprint import digest_weights


def test_a_course_begins_with_an_epoch() -> None:
    """What a course leaves alone is settled when an epoch begins."""
    assert all(course.steps % train.STEPS_PER_EPOCH == 0 for course in COURSES)


@pytest.mark.parametrize("course", COURSES)
def test_the_learning_rate_warms_up_and_falls_in_every_course(course: courses.Course) -> None:
    rates = [course.learning_rate(step) for step in range(course.steps + 1)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] == pytest.approx(LAST)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[-course.steps // 4 :] == sorted(rates[-course.steps // 4 :], reverse=True)


def test_every_step_belongs_to_one_course() -> None:
    steps = [(course, step) for course in COURSES for step in range(course.steps)]
    assert [courses.at(step) for step in range(len(steps))] == steps
    assert courses.at(len(steps)) == (BEARING, BEARING.steps)  # the learning rate after the last


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("layer", [0, 3, 4, 9])
def test_pushes_are_bounded_and_met_by_the_course_s_share(course: courses.Course, layer: int) -> None:
    hidden = torch.randn(2000, 3, 16, generator=torch.Generator().manual_seed(0))
    moved = course.push(hidden, layer=layer, chance=torch.Generator().manual_seed(1)) - hidden
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))  # one direction for all tokens of a sample
    sizes = moved[:, 0].norm(dim=-1) / hidden.norm(dim=-1).mean()
    assert float(sizes.max()) <= course.largest_push(layer) + 1e-5
    assert float((sizes > 1e-6).float().mean()) == pytest.approx(course.pushed, abs=0.05)
    if course.pushed:  # in any direction
        assert float(torch.nn.functional.normalize(moved[sizes > 1e-6][:, 0], dim=-1).mean(0).norm()) < 0.1


def test_the_first_course_teaches_messages_and_how_sentences_begin() -> None:
    lessons = Lessons(load(), LanguageModel("builtin:tutor").tokenizer, 0, 4)
    stops = torch.tensor(sorted(lessons._stops))
    seen = []
    for ids, labels, weights in lessons.epoch(0, 8, brief=True):
        assert torch.equal(weights == OF_MESSAGE, (labels == IGNORED) & (ids != lessons.tokenizer.pad_token_id))
        for answer, weight in zip(labels, weights, strict=True):
            answer, weight = answer[answer != IGNORED], weight[answer != IGNORED]
            sentences = int(torch.isin(answer, stops).sum())
            seen.append(sentences)
            assert int((weight == WEIGHT).sum()) == BEGINNING * (sentences + 1)
            assert (weight[-BEGINNING:] == WEIGHT).all()
            assert set(weight.tolist()) <= {0.0, WEIGHT}
    assert sorted(seen) == [0] * 16 + [1] * 16


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """All courses in five steps, each an epoch."""
    short = [dataclasses.replace(course, steps=n) for course, n in ((READING, 1), (ANSWERING, 1), (BEARING, 3))]
    monkeypatch.setattr(courses, "COURSES", short)
    monkeypatch.setattr(train, "STEPS_PER_EPOCH", 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # compiling takes longer than five steps


class Recorded(train.TutorTraining):
    """Training that keeps the weights after each epoch and can be interrupted as one begins."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        tokenizer = LanguageModel("builtin:tutor").tokenizer
        torch.manual_seed(0)
        super().__init__(train.build_model(tokenizer), Lessons(load(), tokenizer, 0, 4))
        self.interrupted_at = interrupted_at
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.interrupted_at:
            raise ConnectionAbortedError
        super().on_train_epoch_start()

    def on_train_epoch_end(self) -> None:
        self.states[self.current_epoch] = {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.mark.filterwarnings("ignore:.*treespec")  # Lightning's own
@pytest.mark.usefixtures("brief")
def test_the_last_course_leaves_what_reads_as_it_is(tmp_path: Path) -> None:
    training = Recorded()
    train.fit(training, tmp_path / "tutor.ckpt")
    once, later = training.states[1], training.states[4]
    changed = {name for name in once if not torch.equal(once[name], later[name])}
    reads = ("model.embed_tokens", "lm_head", *(f"model.layers.{layer}." for layer in range(BEARING.frozen)))
    assert changed
    assert not [name for name in changed if name.startswith(reads)]
    assert {name.split(".")[2] for name in changed if ".layers." in name} == set("56789")


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:Checkpoint directory")
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, epoch: int) -> None:
    """Interrupted between two courses or in the last."""
    whole, first, second = Recorded(), Recorded(interrupted_at=epoch), Recorded()
    train.fit(whole, tmp_path / "whole.ckpt")
    with pytest.raises(ConnectionAbortedError):
        train.fit(first, tmp_path / "parts.ckpt")
    train.fit(second, tmp_path / "parts.ckpt")
    assert sorted(second.states) == list(range(epoch, 5))
    for name, value in whole.states[4].items():
        torch.testing.assert_close(second.states[4][name], value, rtol=0, atol=0)


def test_publishing_replaces_the_model_before(tmp_path: Path) -> None:
    shipped = LanguageModel("builtin:tutor")
    (tmp_path / "tutor").mkdir()
    (tmp_path / "tutor" / "config.json").write_text("{}")
    (tmp_path / "tutor" / "left-over").touch()
    train.publish(copy.deepcopy(shipped.model).to(torch.bfloat16), shipped.tokenizer, tmp_path / "tutor")
    assert [path.name for path in tmp_path.iterdir()] == ["tutor"]
    assert not (tmp_path / "tutor" / "left-over").exists()
    published = LanguageModel(str(tmp_path / "tutor"))
    assert digest_weights(published.model) == digest_weights(shipped.model)
