"""What makes a model *that* model for a direction: a fingerprint, compared before a direction is used."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from steerkit.exceptions import FingerprintError


@dataclass(frozen=True)
class Fingerprint:
    """The traits that a direction depends on. Fine-tunes of one model share them, as they share directions."""

    architecture: str
    n_layers: int
    hidden_size: int
    tokenizer: str

    @classmethod
    def of(cls, model: Any, tokenizer: Any, n_layers: int) -> "Fingerprint":
        """Take the fingerprint of a loaded model and its tokenizer."""
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
        return cls(
            architecture=type(model).__name__,
            n_layers=n_layers,
            hidden_size=model.config.get_text_config(decoder=True).hidden_size,
            tokenizer=hashlib.sha256(vocabulary.encode()).hexdigest()[:16],
        )

    def check(self, model: "Fingerprint", name: str) -> None:
        """Raise `FingerprintError` unless ``model``, called ``name``, is the one that this fingerprint was taken of."""
        for field in fields(self):
            made_for, got = getattr(self, field.name), getattr(model, field.name)
            if made_for != got:
                raise FingerprintError(
                    f"{field.name.replace('_', ' ')} of {name} is {got}, but the direction was made for {made_for}; "
                    "load the model that it was made for, or fit a new direction."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the traits as plain JSON values."""
        return asdict(self)


def digest_weights(model: Any) -> str:
    """Return a digest of a model's weights: a sample of every tensor, so that training, adapters or a cast change it.

    Tensors that are not in memory (offloaded ones) count by name and shape only.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, len(flat) // 256)].contiguous().cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    active = [tuple(part.active_adapters) for part in model.modules() if hasattr(part, "lora_A")]
    disabled = [part.disable_adapters for part in model.modules() if hasattr(part, "lora_A")]
    digest.update(repr((active, disabled)).encode())
    return digest.hexdigest()
