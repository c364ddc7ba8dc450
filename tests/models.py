"""Tiny random models of several architectures, built in-process, and a tokenizer that they share."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from steerkit.language_model import LanguageModel
from steerkit.sweep_results import Sweep

WORDS = [
    "the",
    "a",
    "of",
    "is",
    "what",
    "how",
    "why",
    "does",
    "do",
    "it",
    "star",
    "stars",
    "rock",
    "music",
    "water",
    "cell",
    "law",
    "price",
    "beat",
    "light",
    "heat",
    "i",
    "am",
    "not",
    "new",
    "to",
    "an",
    "expert",
    "novice",
    "teach",
    "learn",
    "never",
    "always",
    "simple",
    "complex",
    "?",
    ".",
    ",",
    "explain",
    "me",
    "please",
    "thing",
    "works",
    "in",
    "on",
    "for",
    "with",
    "and",
]
TEXTS = [
    "i am new to the star , what is it ?",
    "i never learn music . how does the beat do it ?",
    "a novice am i , please explain water to me .",
    "what is light ? i am not an expert .",
    "the cell is new to me , why does it do the thing ?",
    "simple please , what is heat ?",
    "i teach the law of star light , what is it ?",
    "i am an expert in music , how does the beat do it ?",
    "always with water i am , explain the complex thing .",
    "what is light ? i teach it .",
    "the cell is not new to me , why does it do the thing ?",
    "complex please , what is heat ?",
]
LABELS = [0] * 6 + [1] * 6

SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS) + 6,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX = {key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")}
CONFIGS: dict[str, Any] = {
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "gpt2": lambda: GPT2Config(
        vocab_size=SIZES["vocab_size"], n_embd=32, n_layer=4, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**NEOX),
}
ARCHITECTURES = list(CONFIGS)
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}<turn> {{ m['content'] }} <end>{% endfor %}"


def tiny_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that puts BOS in front of plain text."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<turn>", "<end>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def tiny_model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model with weights large enough that its activations differ clearly between texts."""
    config = CONFIGS[architecture]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def tiny(architecture: str, *, chat: bool = False, **options: Any) -> LanguageModel:
    """A handle on a tiny model in memory."""
    return LanguageModel.wrap(tiny_model(architecture, **options), tiny_tokenizer(chat=chat))


def planted_sweep(*, steering: float = 1.0, n_prompts: int = 12) -> Sweep:
    """Cells in which layer 2 steers best up to ±0.4 and collapses at ±0.6, and layer 1 steers less but never breaks."""
    generator = np.random.default_rng(0)
    rows = []
    strength = {0: 0.0, 1: 0.3, 2: 1.0}
    for prompt in range(n_prompts):
        rows.append(("unsteered", -1, 0.0, f"q{prompt}", 0.0, 1.0))
        for direction in ("fitted", "random"):
            for layer, slope in strength.items():
                for alpha in (-0.6, -0.4, -0.2, 0.2, 0.4, 0.6):
                    works = steering * slope * alpha * (direction == "fitted")
                    kept = 0.0 if layer == 2 and abs(alpha) > 0.5 else 1.0
                    rows.append((direction, layer, alpha, f"q{prompt}", works + 0.02 * generator.normal(), kept))
    cells = pd.DataFrame(rows, columns=["direction", "layer", "alpha", "prompt", "effect", "preserved"])
    return Sweep(cells.assign(text="", margin=0.0, nll_rise=0.0, distinct_2=1.0), {})
