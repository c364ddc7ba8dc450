"""Sparse autoencoders: load those of others, train one with Lightning, and steer along their features."""

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from steerkit.exceptions import CorruptFileError, InvalidInputError
from steerkit.learners import DirectionClassifier, Floats, Integers
from steerkit.lightning_training import train

WEIGHTS = ("params.npz", "params.safetensors", "sae_weights.safetensors")
CONFIGS = ("cfg.json", "config.json")


class SparseAutoencoder(TransformerMixin, BaseEstimator):
    """Activations as sparse combinations of learned features.

    `transform` gives features, `inverse_transform` activations. The features are rectified; of those only the ``k``
    largest count (Gao et al. 2024), or, in an autoencoder that was loaded, those above a threshold of their own
    (Rajamanoharan et al. 2024).

    Parameters
    ----------
    n_features : int
        Size of the dictionary.
    k : int
        Features in use per sample.
    max_epochs, batch_size, learning_rate : int, int, float
        Of the training with Adam.
    random_state : int
    accelerator, devices
        As Lightning's ``Trainer`` takes them.
    progress_bar : bool

    Attributes
    ----------
    encoder_ : ndarray of shape (hidden size, n_features), float32, and encoder_bias_ : ndarray of shape (n_features,)
    decoder_ : ndarray of shape (n_features, hidden size), float32, and decoder_bias_ : ndarray of shape (hidden size,)
    thresholds_ : ndarray of shape (n_features,) or None
        What a feature must exceed; None where the ``k`` largest count.
    history_ : list of float
        Share of the variance that is not explained, by epoch.

    References
    ----------
    Gao et al. (2024), "Scaling and evaluating sparse autoencoders".
    Lieberum et al. (2024), "Gemma Scope: Open Sparse Autoencoders Everywhere All At Once on Gemma 2".
    """

    def __init__(
        self,
        n_features: int = 512,
        *,
        k: int = 16,
        max_epochs: int = 10,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        random_state: int = 0,
        accelerator: str = "cpu",
        devices: Any = 1,
        progress_bar: bool = False,
    ) -> None:
        self.n_features = n_features
        self.k = k
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.accelerator = accelerator
        self.devices = devices
        self.progress_bar = progress_bar

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Train on activations ``(n_samples, hidden size)``, best those of many single tokens."""
        data = validate_data(self, X, dtype=np.float32)
        if not 1 <= self.k <= self.n_features:
            raise InvalidInputError(f"k={self.k!r} is outside 1..n_features={self.n_features!r}; pass fewer.")
        centre = data.mean(axis=0)
        scale = float(np.sqrt(((data - centre) ** 2).sum(axis=1).mean())) or 1.0
        module = _Training(data.shape[1], self.n_features, self.k, self.learning_rate, self.random_state)
        samples = TensorDataset(torch.from_numpy((data - centre) / scale))
        order = torch.Generator().manual_seed(self.random_state)
        loader = DataLoader(samples, batch_size=self.batch_size, shuffle=True, generator=order)
        train(
            module, loader, max_epochs=self.max_epochs, accelerator=self.accelerator, devices=self.devices,
            progress_bar=self.progress_bar, seed=self.random_state,
        )  # fmt: skip
        module = module.cpu()
        # Back to raw units: a feature's activation has the length of what it adds to the residual stream.
        decoder = module.decoder.detach().numpy()
        self.encoder_ = module.encoder.detach().numpy()
        self.encoder_bias_ = (module.encoder_bias.detach().numpy() * scale - centre @ self.encoder_).astype(np.float32)
        self.decoder_ = decoder
        self.decoder_bias_ = (module.decoder_bias.detach().numpy() * scale + centre).astype(np.float32)
        self.thresholds_: NDArray[np.float32] | None = None
        self._from_centre = False
        self.history_ = module.history
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the features ``(n_samples, n_features)`` of activations ``(n_samples, hidden size)``."""
        check_is_fitted(self)
        data = validate_data(self, X, dtype=np.float32, reset=False)
        before = (data - self.decoder_bias_ if self._from_centre else data) @ self.encoder_ + self.encoder_bias_
        features = np.maximum(before, 0)
        if self.thresholds_ is not None:
            return np.asarray(features * (before > self.thresholds_), dtype=np.float32)
        if self.k < features.shape[1]:
            smaller = np.argpartition(features, -self.k, axis=1)[:, : -self.k]
            np.put_along_axis(features, smaller, 0, axis=1)
        return np.asarray(features, dtype=np.float32)

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the activations ``(n_samples, hidden size)`` that features stand for."""
        check_is_fitted(self)
        return np.asarray(np.asarray(X, dtype=np.float32) @ self.decoder_ + self.decoder_bias_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def save(self, folder: str | Path) -> None:
        """Write ``cfg.json`` and ``sae_weights.safetensors`` in the layout of SAELens."""
        check_is_fitted(self)
        Path(folder).mkdir(parents=True, exist_ok=True)
        tensors = {
            "W_enc": self.encoder_,
            "b_enc": self.encoder_bias_,
            "W_dec": self.decoder_,
            "b_dec": self.decoder_bias_,
        }
        config: dict[str, Any] = {
            "d_in": len(self.decoder_bias_),
            "d_sae": len(self.decoder_),
            "apply_b_dec_to_input": self._from_centre,
        }
        if self.thresholds_ is None:
            config |= {"architecture": "topk", "k": self.k}
        else:
            config |= {"architecture": "jumprelu"}
            tensors["threshold"] = self.thresholds_
        Path(folder, "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, Path(folder, WEIGHTS[2]))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, subfolder: str = "", revision: str | None = None) -> Self:
        """Load an autoencoder in the layout of Gemma Scope (1 or 2) or SAELens.

        Parameters
        ----------
        name : str or Path
            A folder, or a repository on the Hugging Face hub.
        subfolder : str
            Where in it the files are, such as ``"resid_post/layer_12_width_16k_l0_small"``.
        revision : str, optional

        Raises
        ------
        CorruptFileError
            There are no weights, or they do not fit together.
        InvalidInputError
            The autoencoder is of a kind that is not supported.
        """
        folder = Path(name, subfolder) if Path(name).is_dir() else _download(str(name), subfolder, revision)
        tensors, config = _read(folder)
        try:
            encoder, decoder = tensors["w_enc"], tensors["w_dec"]
            biases = tensors["b_enc"], tensors["b_dec"]
        except KeyError as error:
            raise CorruptFileError(f"{folder} lacks the weights {error}; pass a folder with an autoencoder.") from error
        if (
            encoder.shape != decoder.shape[::-1]
            or biases[0].shape != decoder.shape[:1]
            or biases[1].shape != encoder.shape[:1]
        ):
            raise CorruptFileError(
                f"{folder} has weights {encoder.shape} and {decoder.shape} that do not fit; get it again."
            )
        kind = _kind(config, tensors, folder)
        k = int(config.get("k") or config.get("activation_fn_kwargs", {}).get("k") or len(decoder))
        loaded = cls(len(decoder), k=k)
        loaded.encoder_, loaded.decoder_ = encoder, decoder
        loaded.encoder_bias_, loaded.decoder_bias_ = biases
        loaded.thresholds_ = tensors["threshold"] if kind == "jumprelu" else None
        loaded._from_centre = bool(config.get("apply_b_dec_to_input", False))
        loaded.n_features_in_ = encoder.shape[0]
        return loaded


class SparseFeatures(DirectionClassifier):
    """The direction of the features of a sparse autoencoder that tell the classes apart.

    The features whose means differ most, in units of their spread, are kept; the direction is the combination of
    their decoder rows by the difference of their means.

    Parameters
    ----------
    autoencoder : SparseAutoencoder
        Loaded or fitted for the layer that is read; if it is neither, it is fitted to the samples, which shows the
        mechanics but is far too little data for features that mean something.
    n_features : int
        How many to keep.

    Attributes
    ----------
    features_ : ndarray of int
        Those kept, the best first.
    differences_ : ndarray of float
        The difference of their means between ``classes_[1]`` and ``classes_[0]``.
    classes_, coef_, intercept_
        As in `MeanDifference`.
    """

    scaling = "none"  # an autoencoder knows the residual stream in its own units only

    def __init__(self, autoencoder: SparseAutoencoder | None = None, *, n_features: int = 8) -> None:
        self.autoencoder = autoencoder
        self.n_features = n_features

    def __sklearn_clone__(self) -> Self:
        """Keep an autoencoder that is fitted or loaded: a fresh one would have other features."""
        fitted = hasattr(self.autoencoder, "decoder_")
        autoencoder = self.autoencoder if fitted or self.autoencoder is None else clone(self.autoencoder)
        return type(self)(autoencoder, n_features=self.n_features)

    def _weights(self, X: Floats, sides: Integers) -> Floats:
        given = SparseAutoencoder(64, k=8) if self.autoencoder is None else self.autoencoder
        fitted = hasattr(given, "decoder_")
        self.autoencoder_ = given if fitted else clone(given).fit(X)
        if self.autoencoder_.decoder_.shape[1] != X.shape[1]:
            raise InvalidInputError(
                f"the autoencoder is for activations of size {self.autoencoder_.decoder_.shape[1]}, {X.shape[1]} came; "
                "load the one for this model and layer."
            )
        features = self.autoencoder_.transform(X)
        differences = features[sides == 1].mean(axis=0) - features[sides == 0].mean(axis=0)
        spread = np.sqrt((features[sides == 1].var(axis=0) + features[sides == 0].var(axis=0)) / 2)
        separation = np.abs(differences) / (spread + 1e-3 * (spread.max() + np.abs(differences).max()) + 1e-30)
        self.features_ = np.argsort(-separation, kind="stable")[: self.n_features]
        self.features_ = self.features_[separation[self.features_] > 0]
        self.differences_ = differences[self.features_]
        return np.asarray(self.differences_ @ self.autoencoder_.decoder_[self.features_], dtype=np.float64)

    def top_features(self, X: ArrayLike, texts: Any, n_texts: int = 3) -> list[dict[str, Any]]:
        """Name each kept feature by the texts that activate it most; X holds their activations, row by row."""
        check_is_fitted(self)
        features = self.autoencoder_.transform(X)[:, self.features_]
        texts = list(texts)
        if len(texts) != len(features):
            raise InvalidInputError(
                f"{len(texts)} texts came for {len(features)} rows of activations; pass one per row."
            )
        order = np.argsort(-features, axis=0, kind="stable")[:n_texts]
        return [
            {
                "feature": int(feature),
                "difference": float(self.differences_[place]),
                "texts": [texts[row] for row in order[:, place] if features[row, place] > 0],
            }
            for place, feature in enumerate(self.features_)
        ]


class _Training(LightningModule):
    """Reconstruct samples from their k strongest features; the decoder's rows keep unit length."""

    def __init__(self, n_inputs: int, n_features: int, k: int, learning_rate: float, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        rows = nn.functional.normalize(torch.randn(n_features, n_inputs, generator=chance), dim=1)
        self.decoder, self.encoder = nn.Parameter(rows), nn.Parameter(rows.T.clone())
        self.encoder_bias, self.decoder_bias = (
            nn.Parameter(torch.zeros(n_features)),
            nn.Parameter(torch.zeros(n_inputs)),
        )
        self.k, self.learning_rate = k, learning_rate
        self.history: list[float] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Return the share of the variance that is not explained."""
        (samples,) = batch
        features = torch.relu((samples - self.decoder_bias) @ self.encoder + self.encoder_bias)
        top = features.topk(self.k, dim=1)
        sparse = torch.zeros_like(features).scatter(1, top.indices, top.values)
        loss = ((sparse @ self.decoder + self.decoder_bias - samples) ** 2).sum(dim=1).mean()
        self.log("unexplained", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep the decoder's rows at unit length, so that features cannot hide in them."""
        with torch.no_grad():
            self.decoder.copy_(nn.functional.normalize(self.decoder, dim=1))

    def on_train_epoch_end(self) -> None:
        """Remember the loss."""
        self.history.append(float(self.trainer.callback_metrics["unexplained"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in the literature."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


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


def _read(folder: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Return the tensors by their lower-case names, and the settings."""
    found = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not found:
        raise CorruptFileError(f"{folder} holds none of {', '.join(WEIGHTS)}; pass the folder of one autoencoder.")
    try:
        if found[0].suffix == ".npz":
            with np.load(found[0], allow_pickle=False) as archive:
                tensors = dict(archive)
        else:
            tensors = load_file(found[0])
        settings = [
            json.loads((folder / file).read_text(encoding="utf-8")) for file in CONFIGS if (folder / file).is_file()
        ]
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptFileError(f"{found[0]} cannot be read ({error}); get it again.") from error
    return {name.lower(): np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}, (settings or [{}])[
        0
    ]


def _kind(config: dict[str, Any], tensors: dict[str, Any], folder: Path) -> str:
    kind = str(config.get("architecture") or ("jumprelu" if "threshold" in tensors else "standard")).replace("_", "")
    if kind == "jumprelu" and "threshold" not in tensors:
        raise CorruptFileError(f"{folder} is a jumprelu autoencoder without thresholds; get it again.")
    if kind not in ("jumprelu", "topk", "standard"):
        raise InvalidInputError(
            f"{folder} is a {kind!r} autoencoder; pass one of kind 'jumprelu', 'topk' or 'standard'."
        )
    if config.get("normalize_activations") not in (None, "none"):
        raise InvalidInputError(
            f"{folder} normalises activations ({config['normalize_activations']}), which is not supported; fold the "
            "normalisation into its weights first."
        )
    return kind
