"""The files of sparse autoencoders: the layouts of Gemma Scope and SAELens, read from a folder or the hub."""

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from steerkit.exceptions import CorruptFileError, InvalidInputError

WEIGHTS = ("params.npz", "params.safetensors", "sae_weights.safetensors")
CONFIGS = ("cfg.json", "config.json")

Tensors = dict[str, NDArray[np.float32]]


def read_autoencoder(name: str | Path, subfolder: str, revision: str | None) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors by their lower-case names, and the settings, of which ``"architecture"`` is always there.

    The tensors are ``w_enc`` ``(hidden size, n_features)``, ``b_enc``, ``w_dec``, ``b_dec`` and, for the architecture
    ``"jumprelu"``, ``threshold``; all float32.

    Raises
    ------
    CorruptFileError, InvalidInputError
    """
    folder = Path(name, subfolder) if Path(name).is_dir() else _download(str(name), subfolder, revision)
    tensors, config = _read(folder)
    if missing := [tensor for tensor in ("w_enc", "w_dec", "b_enc", "b_dec") if tensor not in tensors]:
        raise CorruptFileError(f"{folder} lacks the weights {missing[0]!r}; pass a folder with an autoencoder.")
    encoder, decoder = tensors["w_enc"].shape, tensors["w_dec"].shape
    fitting = {"b_enc": decoder[:1], "b_dec": encoder[:1], "threshold": decoder[:1]}
    if encoder != decoder[::-1] or any(tensors[name].shape != fitting[name] for name in fitting if name in tensors):
        raise CorruptFileError(f"{folder} has weights {encoder} and {decoder} that do not fit; get it again.")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise CorruptFileError(f"{folder} has weights that are NaN or Inf; get it again.")
    return tensors, config | {"architecture": _architecture(config, tensors, folder)}


def write_autoencoder(folder: str | Path, tensors: Tensors, config: dict[str, Any]) -> None:
    """Write ``cfg.json`` and ``sae_weights.safetensors`` in the layout of SAELens."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{folder} cannot be written ({error.strerror}); pass another folder.") from error
    n_features, hidden_size = tensors["w_dec"].shape
    config = {"d_in": hidden_size, "d_sae": n_features} | config
    Path(folder, CONFIGS[0]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    cased = {name.replace("w_", "W_"): np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(cased, Path(folder, WEIGHTS[2]))


def _download(name: str, subfolder: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    at = f"{subfolder}/" if subfolder else ""
    wanted = [at + file for file in (*WEIGHTS, *CONFIGS)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted), subfolder)
    except (OSError, ValueError) as error:
        raise CorruptFileError(
            f"{name} is no folder and cannot be loaded from the hub ({type(error).__name__}); check the name."
        ) from error


def _read(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    found = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not found:
        raise CorruptFileError(f"{folder} holds none of {', '.join(WEIGHTS)}; pass the folder of one autoencoder.")
    try:
        if found[0].suffix == ".npz":
            with np.load(found[0], allow_pickle=False) as archive:
                tensors = dict(archive)
        else:
            tensors = {name: tensor.float().numpy() for name, tensor in load_file(found[0]).items()}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, SafetensorError) as error:
        raise CorruptFileError(f"{found[0]} cannot be read ({error}); get it again.") from error
    config: Any = {}
    configs = [folder / file for file in CONFIGS if (folder / file).is_file()]
    if configs:
        try:
            config = json.loads(configs[0].read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{configs[0]} cannot be read ({error}); get it again.") from error
        if not isinstance(config, dict):
            raise CorruptFileError(
                f"{configs[0]} holds a {type(config).__name__}, an object was expected; get it again."
            )
        if configs[0].name == CONFIGS[0]:  # SAELens' defaults, where an older file leaves them out
            config = {"apply_b_dec_to_input": True, "activation_fn_kwargs": {}} | config
    return {name.lower(): np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}, config


def _architecture(config: dict[str, Any], tensors: Tensors, folder: Path) -> str:
    kind = str(config.get("architecture") or ("jumprelu" if "threshold" in tensors else "standard")).replace("_", "")
    if kind == "jumprelu" and "threshold" not in tensors:
        raise CorruptFileError(f"{folder} is a jumprelu autoencoder without thresholds; get it again.")
    if kind not in ("jumprelu", "topk", "standard"):
        raise InvalidInputError(
            f"{folder} is a {kind!r} autoencoder; pass one of kind 'jumprelu', 'topk' or 'standard'."
        )
    if config.get("normalize_activations") not in (None, False, "none"):
        raise InvalidInputError(
            f"{folder} normalises activations ({config['normalize_activations']}), which is not supported; fold the "
            "normalisation into its weights first."
        )
    return kind
