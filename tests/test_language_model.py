"""The handle: scikit-learn may clone, compare and pickle it; text goes in and out as the model expects."""

import copy
import pickle
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.base import clone

from steerkit.exceptions import InvalidInputError, LayerError, ModelLoadError, PromptError
from steerkit.language_model import LanguageModel
from steerkit.reading import generate
from tests.models import TEXTS, tiny

FROM_DISK = ["gemma3", "llama", "qwen3", "gpt2"]


@pytest.mark.parametrize("architecture", FROM_DISK)
def test_a_folder_loads_by_name(architecture: str, saved: Callable[[str], Path]) -> None:
    model = LanguageModel(str(saved(architecture)))
    assert (model.n_layers, model.hidden_size, model.context_length) == (4, 32, 128)
    assert generate(model, model.encode(TEXTS[:2]), max_new_tokens=4) == generate(
        tiny(architecture, chat=architecture != "gpt2"),
        tiny(architecture, chat=architecture != "gpt2").encode(TEXTS[:2]),
        max_new_tokens=4,
    )


def test_clone_and_copies_are_the_handle_itself(saved: Callable[[str], Path]) -> None:
    model = LanguageModel(str(saved("llama")))
    assert clone(model) is copy.copy(model) is copy.deepcopy(model) is model


def test_a_pickle_holds_the_name_and_no_weights(saved: Callable[[str], Path]) -> None:
    model = LanguageModel(str(saved("llama")), dtype="float32")
    assert model.n_layers == 4
    pickled = pickle.dumps(model)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) == model  # noqa: S301
    assert model != LanguageModel(str(saved("llama")), dtype="bfloat16")


def test_a_model_in_memory_refuses_to_be_pickled() -> None:
    expected = (
        "a model that exists only in memory cannot be pickled; save it with save_pretrained and pass the folder to "
        "LanguageModel."
    )
    with pytest.raises(pickle.PicklingError, match=re.escape(expected)):
        pickle.dumps(tiny("llama"))


def test_a_bf16_model_stays_bf16(saved: Callable[[str], Path]) -> None:
    assert LanguageModel(str(saved("llama")), dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("chat", [True, False])
def test_bos_is_never_doubled(chat: bool) -> None:
    model = tiny("llama", chat=chat)
    (ids,) = model.encode(["what is it ?"])
    assert ids.count(model.tokenizer.bos_token_id) == 1
    assert (model.tokenizer.convert_tokens_to_ids("<turn>") in ids) is chat
    (again,) = model.encode([[{"role": "user", "content": "what is it ?"}]])
    assert again == ids


def test_the_tokenizer_is_never_changed() -> None:
    model = tiny("llama")
    before = (model.tokenizer.padding_side, model.tokenizer.pad_token, model.tokenizer.backend_tokenizer.to_str())
    generate(model, model.encode(TEXTS), max_new_tokens=2)
    assert before == (
        model.tokenizer.padding_side,
        model.tokenizer.pad_token,
        model.tokenizer.backend_tokenizer.to_str(),
    )


def test_a_batch_of_n_is_n_batches_of_one(model: LanguageModel) -> None:
    sequences = model.encode(TEXTS)
    together = generate(model, sequences, max_new_tokens=8)
    assert together == [generate(model, [sequence], max_new_tokens=8)[0] for sequence in sequences]


def test_with_cache_is_without(model: LanguageModel) -> None:
    sequences = model.encode(TEXTS[:4])
    assert generate(model, sequences, max_new_tokens=8) == generate(model, sequences, max_new_tokens=8, use_cache=False)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([""], "prompt 0 is empty, text was expected; remove it or fill it."),
        (["what", " \n"], "prompt 1 is empty, text was expected; remove it or fill it."),
        (["what", 3], "prompt 1 is a int, text was expected; pass a str, or a list of chat messages."),
        (["what", None], "prompt 1 is a NoneType, text was expected; pass a str, or a list of chat messages."),
        ([[]], "prompt 0 is a list, text was expected; pass a str, or a list of chat messages."),
        (
            [["a", "b"]],
            "prompt 0 is a list of str; pass a (prompt, completion) pair as a tuple, or chat messages as "
            "{'role': 'user', 'content': text}.",
        ),
        (
            [[{"content": "hi"}]],
            "prompt 0 has a message without role and content; pass {'role': 'user', 'content': text}.",
        ),
        (["a " * 200], "prompt 0 has 201 tokens, the model takes at most 128; shorten it."),
    ],
)
def test_bad_prompts_are_refused(prompts: list[str], expected: str) -> None:
    with pytest.raises(PromptError, match=f"^{re.escape(expected)}$"):
        tiny("llama").encode(prompts)


@pytest.mark.parametrize("layer", [4, -1, 1.5, "one", True])
def test_a_layer_out_of_range_is_refused(layer: object) -> None:
    expected = f"layer={layer!r} is outside 0..3 for the model; pass layer='auto' or an index in that range."
    with pytest.raises(LayerError, match=re.escape(expected)):
        tiny("llama").check_layer(layer)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    expected = "config.json is missing; pass a folder written by save_pretrained or a hub name."
    with pytest.raises(ModelLoadError, match=re.escape(expected)):
        LanguageModel(str(tmp_path / "empty")).load()
    with pytest.raises(ModelLoadError, match=r"builtin:nothing is not shipped with steerkit; pass builtin:tutor\."):
        LanguageModel("builtin:nothing").load()


def test_damaged_weights_are_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    LanguageModel(str(saved("llama"))).model.save_pretrained(folder)
    LanguageModel(str(saved("llama"))).tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="cannot be loaded as a causal language model"):
        LanguageModel(str(folder)).load()


def test_answers_that_would_outgrow_the_context_are_refused() -> None:
    model = tiny("gpt2")
    expected = (
        "a prompt of 12 tokens and max_new_tokens=117 do not fit in the context of 128 tokens; shorten the prompt or "
        "ask for fewer."
    )
    with pytest.raises(PromptError, match=f"^{re.escape(expected)}$"):
        generate(model, model.encode(TEXTS[:1]), max_new_tokens=117)
    assert len(generate(model, model.encode(TEXTS[:1]))) == 1  # by default, as many as fit


def test_a_model_that_lacks_weights_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    model = LanguageModel(saved("llama"))
    weights = {name: value for name, value in model.model.state_dict().items() if "layers.1." not in name}
    model.model.save_pretrained(folder, state_dict=weights)
    model.tokenizer.save_pretrained(folder)
    with pytest.raises(ModelLoadError, match=r"of its weights .* which would be random; get it again"):
        LanguageModel(folder).load()


def test_a_wrapped_model_is_itself_whatever_its_name(saved: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(saved("llama")).train()
    model = LanguageModel.wrap(loaded, tiny("llama").tokenizer)
    assert not loaded.training
    assert model != LanguageModel(saved("llama"))
    with pytest.raises(pickle.PicklingError, match="exists only in memory"):
        pickle.dumps(model)


def test_bad_handles_are_refused(saved: Callable[[str], Path]) -> None:
    with pytest.raises(ModelLoadError, match="model is a NoneType, a name or folder was expected; pass a str or Path"):
        LanguageModel(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="chat='yes' is not understood; pass 'auto', True or False"):
        LanguageModel(saved("llama"), chat="yes")
    with pytest.raises(InvalidInputError, match="has no chat template; pass chat='auto' or False"):
        LanguageModel(saved("gpt2"), chat=True).encode(["star"])
    with pytest.raises(ModelLoadError, match="and a device that is there"):
        LanguageModel(saved("llama"), device="toaster").load()


def test_a_folder_is_found_from_anywhere(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved("llama").parent)
    assert LanguageModel("llama").name == str(saved("llama").resolve())


def test_unknown_generation_settings_are_refused() -> None:
    model = tiny("llama")
    expected = (
        "'max_tokens' is no generation setting; pass those of transformers' GenerationConfig, such as max_new_tokens, "
        "temperature or num_beams."
    )
    with pytest.raises(TypeError, match=re.escape(expected)):
        generate(model, model.encode(TEXTS[:1]), max_tokens=4)


def test_rows_with_seeds_are_drawn_from_the_distribution_of_transformers() -> None:
    model = tiny("llama")
    sequences = model.encode(TEXTS[:1]) * 400
    options: dict[str, Any] = {"max_new_tokens": 1, "temperature": 1.3, "top_k": 5}
    torch.manual_seed(0)
    theirs = Counter(model.generate(sequences, **options))
    ours = Counter(model.generate(sequences, seeds=range(400), **options))
    assert len(ours) <= 5
    assert max(abs(ours[word] - theirs[word]) for word in {*ours, *theirs}) < 60  # four standard deviations
    assert model.generate(sequences[:3], seeds=[7, 8, 9], **options) == [
        model.generate(sequences[:1], seeds=[seed], **options)[0] for seed in (7, 8, 9)
    ]


def test_rows_with_seeds_have_one_beam() -> None:
    model = tiny("llama")
    with pytest.raises(InvalidInputError, match=r"^rows with seeds of their own have one beam and one answer;"):
        model.generate(model.encode(TEXTS[:1]), seeds=[1], do_sample=True, num_beams=2)
    with pytest.raises(InvalidInputError, match=r"^eta_cutoff cannot be used where each row has a seed; pass some of"):
        model.generate(model.encode(TEXTS[:1]), seeds=[1], do_sample=True, eta_cutoff=0.1)
