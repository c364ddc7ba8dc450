"""The built-in model shows the phenomenon, and everything that the main job promises, end to end."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from steerkit import LanguageModel, SteeredModel, SteeringEstimator, load_expertise
from steerkit.datasets import bag_of_words_accuracy

FOLDER = Path(str(files("steerkit.builtin").joinpath("tutor")))


@pytest.fixture(scope="module")
def estimator() -> SteeringEstimator:
    train = load_expertise(subset="train")
    return SteeringEstimator("builtin:tutor").fit(train.data, train.target, groups=train.groups)


def test_it_is_small_bf16_and_loads_with_plain_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 8 * 2**20
    with safe_open(FOLDER / "model.safetensors", framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER)
    chat = [{"role": "user", "content": "What is a neutron star?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=60, do_sample=False)[0], skip_special_tokens=True)
    assert "neutron star" in answer.split("model")[-1].lower()


def test_a_probe_reads_what_a_bag_of_words_cannot(estimator: SteeringEstimator) -> None:
    train, test = load_expertise(subset="train"), load_expertise(subset="test")
    probe = estimator.layer_scores(test.data, test.target).max()
    assert probe >= 0.97
    assert bag_of_words_accuracy(train, test) <= probe - 0.2


def test_the_article_s_ten_prompts_give_nearly_the_same_direction(estimator: SteeringEstimator) -> None:
    article = load_expertise(subset="article")
    few = SteeringEstimator("builtin:tutor", layer=estimator.layer_).fit(article.data, article.target)
    assert few.vector().direction @ estimator.vector().direction > 0.8


def test_steering_changes_the_answer_both_ways_and_saves(estimator: SteeringEstimator, tmp_path: Path) -> None:
    steered = estimator.export(alpha=0.4)
    novice, neutral, expert = steered.generate(["What is a virus?"] * 3, alpha=[-0.4, 0, 0.4], max_new_tokens=48)
    assert len({novice, neutral, expert}) == 3
    steered.save_pretrained(tmp_path / "expert-tutor")
    assert (
        json.loads((tmp_path / "expert-tutor" / "steering_config.json").read_text())["model"]["name"] == "builtin:tutor"
    )
    loaded = SteeredModel.from_pretrained(tmp_path / "expert-tutor")
    assert loaded.generate("What is a virus?", max_new_tokens=48) == expert


def test_batched_greedy_text_is_the_text_of_single_calls_in_float64(estimator: SteeringEstimator) -> None:
    model = LanguageModel("builtin:tutor", dtype="float64")
    steered = SteeredModel(model, estimator.vector())
    questions = ["What is a virus?", "How does a vaccine work?", "What is a tariff?"]
    together = steered.generate(questions, alpha=[-0.4, 0.2, 0.4], max_new_tokens=32)
    alone = [steered.generate(q, alpha=a, max_new_tokens=32) for q, a in zip(questions, [-0.4, 0.2, 0.4], strict=True)]
    assert together == alone


def test_readings_of_the_training_prompts_are_centred_between_the_classes(estimator: SteeringEstimator) -> None:
    train = load_expertise(subset="train")
    readings = estimator.decision_function(train.data)
    assert readings[train.target == 1].mean() > 0 > readings[train.target == 0].mean()
    assert np.isfinite(readings).all()
