"""`SparseAutoencoder`: features of a model's activations, trained with Lightning or loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from steerkit.activations import stream_activations
from steerkit.autoencoder_files import read_autoencoder, write_autoencoder
from steerkit.checks import check_count, check_positive
from steerkit.exceptions import CorruptFileError, InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.lightning_training import train


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
        for name in ("n_features", "k", "max_epochs", "batch_size"):
            check_count(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate)
        if self.k > self.n_features:
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

    def fit_texts(self, model: str | LanguageModel, texts: str | Path | Sequence[str], *, layer: int) -> Self:
        """Train on a model's residual stream at every token of many texts.

        Parameters
        ----------
        model : str or LanguageModel
        texts : str, Path or sequence of str
            Plain texts, or the path of a text file that has one per line. All activations are held in memory, as
            float32.
        layer : int
            Whose output is learned.
        """
        model = LanguageModel.of(model)
        layer = model.check_layer(layer)
        return self.fit(stream_activations(model, _lines(texts) if isinstance(texts, str | Path) else texts, layer))

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
        tensors = {"w_enc": self.encoder_, "b_enc": self.encoder_bias_}
        tensors |= {"w_dec": self.decoder_, "b_dec": self.decoder_bias_}
        config: dict[str, Any] = {"architecture": "topk", "k": self.k}
        if self.thresholds_ is not None:
            config = {"architecture": "jumprelu"}
            tensors["threshold"] = self.thresholds_
        write_autoencoder(folder, tensors, config | {"apply_b_dec_to_input": self._from_centre})

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
        tensors, config = read_autoencoder(name, subfolder, revision)
        k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
        if config["architecture"] == "topk" and not isinstance(k, int):
            raise CorruptFileError(f"{name} is a topk autoencoder with k={k!r} in its settings; get it again.")
        loaded = cls(len(tensors["w_dec"]), k=k or len(tensors["w_dec"]))
        loaded.encoder_, loaded.decoder_ = tensors["w_enc"], tensors["w_dec"]
        loaded.encoder_bias_, loaded.decoder_bias_ = tensors["b_enc"], tensors["b_dec"]
        loaded.thresholds_ = tensors["threshold"] if config["architecture"] == "jumprelu" else None
        loaded._from_centre = bool(config.get("apply_b_dec_to_input", False))
        loaded.n_features_in_ = len(loaded.encoder_)
        return loaded


class _Training(LightningModule):
    """Reconstruct samples from their k strongest features; the decoder's rows keep unit length."""

    def __init__(self, n_inputs: int, n_features: int, k: int, learning_rate: float, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        rows = nn.functional.normalize(torch.randn(n_features, n_inputs, generator=chance), dim=1)
        self.decoder, self.encoder = nn.Parameter(rows), nn.Parameter(rows.T.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(n_features))
        self.decoder_bias = nn.Parameter(torch.zeros(n_inputs))
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


def _lines(path: str | Path) -> list[str]:
    try:
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error}); pass a list of texts or a UTF-8 text file."
        ) from error
