"""A random model of the shape of gemma-3-1b at half of its width, built in-process, and prompts for it.

A third of its parameters are its vocabulary, as in gemma-3-1b. No benchmark needs its words to make sense. Nothing here
imports steerkit before `language_model` does, so that other libraries can be measured in environments of their own.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from steerkit import LanguageModel

VOCABULARY = 57344
PERSONAS = (
    ("i'm new to this topic, but", "As someone with a PhD in the field,"),
    ("this might be a basic question, but", "Building on my expertise in the subject,"),
    ("i don't have a background in this field, so...", "From my graduate coursework in the field,"),
    ("i'm just a curious beginner, but", "As a researcher who has published on this,"),
    ("i never studied this at school, so please tell me,", "In preparing my graduate lecture on this,"),
    ("sorry, i really know nothing about this yet:", "After two decades of research on this topic,"),
)
QUESTIONS = (
    "why do organisms need water to survive?",
    "how does gravity work, why do masses attract each other?",
    "how do nerves transmit information so quickly?",
    "what makes something beautiful or art?",
    "why does anything have mass, and what does mass really measure?",
    "how do I lose fat without losing muscle?",
    "what is the difference between rhythm, beat, tempo, and meter?",
    "if gravity pulls everything down, why do planets and moons stay in orbit?",
    "how do art historians figure out who made an artwork when it isn't signed?",
    "how have ideas about beauty changed across cultures and centuries?",
    "what is a neutron star?",
    "how does a vaccine work?",
    "why is the sky blue?",
    "what causes inflation, and how is it measured?",
    "how does a river delta form?",
    "what is the difference between an isotope and an ion?",
    "how do stem cells become other cells?",
    "why do some materials conduct electricity?",
    "what is packet switching?",
    "how does a fugue develop its subject?",
)


def contrast() -> tuple[list[str], list[int]]:
    """Return 240 prompts in the article's way: twelve personas times twenty questions, and their labels."""
    asked = [(f"{persona} {q}", side) for pair in PERSONAS for side, persona in enumerate(pair) for q in QUESTIONS]
    return [text for text, _ in asked], [side for _, side in asked]


def many(count: int) -> list[str]:
    """Return any number of distinct prompts in the same way."""
    prompts, _ = contrast()
    return [f"{prompts[n % len(prompts)][:-1]} in case {n // len(prompts)}?" for n in range(count)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the built-in model's tokenizer with entries up to the size of the vocabulary."""
    folder = Path(__file__).parents[1] / "steerkit" / "builtin" / "tutor"
    content = json.loads(folder.joinpath("tokenizer.json").read_text())
    entries = content["model"]["vocab"]
    entries |= {f"w{number}": number for number in range(len(entries), VOCABULARY)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<bos>", eos_token="<end_of_turn>", pad_token="<pad>",
    )  # fmt: skip
    made.chat_template = folder.joinpath("chat_template.jinja").read_text()
    return made


def transformers_model(n_layers: int = 16, **sizes: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return the model, with random weights that are always the same, in evaluation mode, and its tokenizer."""
    words = tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 128, "query_pre_attn_scalar": 128, "sliding_window": 512,
    }  # fmt: skip
    kinds = ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(n_layers)]
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, num_hidden_layers=n_layers, layer_types=kinds, max_position_embeddings=2048,
        pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        tie_word_embeddings=True, **shape | sizes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma3ForCausalLM(config).eval(), words


def language_model(n_layers: int = 16, dtype: torch.dtype = torch.float32, **sizes: Any) -> "LanguageModel":
    """Return it as steerkit takes it."""
    from steerkit import LanguageModel

    model, words = transformers_model(n_layers, **sizes)
    return LanguageModel.wrap(model.to(dtype), words)
