"""Sparse autoencoders load from the layouts that others publish, train, and steer along features."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save
from sklearn.base import clone

from steerkit.activations import ActivationExtractor, stream_activations
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import CorruptFileError, InvalidInputError
from steerkit.sparse_autoencoder import SparseAutoencoder
from steerkit.sparse_features import SparseFeatures
from tests.models import LABELS, TEXTS, tiny

D, M = 8, 20


@pytest.fixture
def tensors() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    shapes = {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,), "threshold": (M,)}
    drawn = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn | {"threshold": np.abs(drawn["threshold"])}


def jump(X: Any, t: dict[str, Any]) -> Any:
    before = X @ t["W_enc"] + t["b_enc"]
    return np.where(before > t["threshold"], np.maximum(before, 0), 0)


X = np.random.default_rng(1).normal(size=(30, D)).astype(np.float32)


def test_gemma_scope_s_npz(tmp_path: Path, tensors: dict[str, Any]) -> None:
    folder = tmp_path / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **tensors)
    loaded = SparseAutoencoder.from_pretrained(tmp_path, subfolder="layer_12/width_16k/average_l0_82")
    np.testing.assert_allclose(loaded.transform(X), jump(X, tensors), atol=1e-5)
    expected = jump(X, tensors) @ tensors["W_dec"] + tensors["b_dec"]
    np.testing.assert_allclose(loaded.inverse_transform(loaded.transform(X)), expected, atol=1e-4)


def test_gemma_scope_2_s_safetensors(tmp_path: Path, tensors: dict[str, Any]) -> None:
    save_file({name.lower(): tensor for name, tensor in tensors.items()}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu", "width": M, "l0": 10}))
    np.testing.assert_allclose(SparseAutoencoder.from_pretrained(tmp_path).transform(X), jump(X, tensors), atol=1e-5)


@pytest.mark.parametrize("before_k", [True, False])
def test_saelens_top_k(tmp_path: Path, tensors: dict[str, Any], before_k: bool) -> None:
    del tensors["threshold"]
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    k = {"k": 4} if before_k else {"activation_fn_kwargs": {"k": 4}}
    settings = {"architecture": "topk", "d_in": D, "d_sae": M, "apply_b_dec_to_input": True, **k}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    features = SparseAutoencoder.from_pretrained(tmp_path).transform(X)
    before = np.maximum((X - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"], 0)
    kept = np.sort(before, axis=1)[:, -4:-3] <= before
    np.testing.assert_allclose(features, before * kept, atol=1e-5)


def test_saelens_jumprelu_and_standard(tmp_path: Path, tensors: dict[str, Any]) -> None:
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(
        json.dumps({"architecture": "jumprelu", "normalize_activations": "none", "apply_b_dec_to_input": False})
    )
    np.testing.assert_allclose(SparseAutoencoder.from_pretrained(tmp_path).transform(X), jump(X, tensors), atol=1e-5)
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard"}))
    # SAELens takes the decoder's bias off the input where its settings say nothing of it.
    rectified = np.maximum((X - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"], 0)
    np.testing.assert_allclose(SparseAutoencoder.from_pretrained(tmp_path).transform(X), rectified, atol=1e-5)


def test_what_cannot_be_loaded_says_why(tmp_path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(
        CorruptFileError, match=r"holds none of params\.npz, params\.safetensors, sae_weights\.safetensors"
    ):
        SparseAutoencoder.from_pretrained(tmp_path)
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "gated"}))
    with pytest.raises(InvalidInputError, match="is a 'gated' autoencoder; pass one of kind 'jumprelu', 'topk' or"):
        SparseAutoencoder.from_pretrained(tmp_path)
    (tmp_path / "cfg.json").write_text(
        json.dumps({"architecture": "topk", "k": 3, "normalize_activations": "layer_norm"})
    )
    with pytest.raises(
        InvalidInputError, match=re.escape("normalises activations (layer_norm), which is not supported;")
    ):
        SparseAutoencoder.from_pretrained(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    save_file(tensors | {"W_dec": tensors["W_dec"][:, :4].copy()}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(
        CorruptFileError, match=re.escape("has weights (8, 20) and (20, 4) that do not fit; get it again.")
    ):
        SparseAutoencoder.from_pretrained(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CorruptFileError, match=r"sae_weights\.safetensors cannot be read"):
        SparseAutoencoder.from_pretrained(tmp_path)


def planted(n: int = 3000, seed: int = 0) -> tuple[Any, Any, Any]:
    """Sparse combinations of known directions."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(24, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    active = np.where(generator.random((n, 24)) < 0.08, 1 + generator.random((n, 24)), 0)
    return (active @ rows * 20 + 7).astype(np.float32), active, rows


def test_training_explains_most_of_the_variance_and_repeats(tmp_path: Path) -> None:
    X, _, _ = planted()
    trained = SparseAutoencoder(48, k=4, max_epochs=20, learning_rate=5e-3).fit(X)
    rest = ((trained.inverse_transform(trained.transform(X)) - X) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum()
    assert rest < 0.25
    assert trained.history_[-1] < trained.history_[0]
    assert ((trained.transform(X) > 0).sum(axis=1) <= 4).all()
    again = SparseAutoencoder(48, k=4, max_epochs=20, learning_rate=5e-3).fit(X)
    np.testing.assert_array_equal(trained.decoder_, again.decoder_)
    trained.save(tmp_path / "sae")
    np.testing.assert_array_equal(
        SparseAutoencoder.from_pretrained(tmp_path / "sae").transform(X), trained.transform(X)
    )


def test_the_features_that_separate_the_classes_give_the_direction() -> None:
    X, active, rows = planted()
    y = (active[:, 5] > 0).astype(int)
    known = SparseAutoencoder(24, k=24)
    known.encoder_, known.decoder_ = np.linalg.pinv(rows).astype(np.float32), rows.astype(np.float32)
    known.encoder_ = rows.T.astype(np.float32)
    known.encoder_bias_, known.decoder_bias_ = -known.encoder_.sum(axis=0) * 7 - 12, np.full(16, 7, dtype=np.float32)
    known.thresholds_, known._from_centre, known.n_features_in_ = None, False, 16
    fitted = SparseFeatures(known, n_features=1).fit(X, y)
    assert fitted.features_.tolist() == [5]
    assert fitted.coef_[0] @ rows[5] / np.linalg.norm(fitted.coef_) > 0.999
    (top,) = fitted.top_features(X, [f"text {i}" for i in range(len(X))], n_texts=4)
    assert top["feature"] == 5
    assert top["difference"] > 0
    assert len(top["texts"]) == 4
    assert all(y[int(text.split()[1])] for text in top["texts"])


def test_it_steers_a_model_along_features_of_its_own() -> None:
    model = tiny("llama")
    activations = ActivationExtractor(model, layers=[2]).fit_transform(TEXTS)[:, 0]
    autoencoder = SparseAutoencoder(32, k=4, max_epochs=30).fit(activations)
    estimator = SteeringEstimator(model, learner=SparseFeatures(autoencoder), layers=[2], layer=2, cv=2)
    steered = estimator.fit(TEXTS, LABELS).export(alpha=2.0)
    learner: Any = estimator.learners_[0]
    assert learner.autoencoder_.decoder_ is autoencoder.decoder_  # not one trained anew on twelve texts
    assert steered.generate(TEXTS[0], max_new_tokens=8) != steered.generate(TEXTS[0], alpha=0.0, max_new_tokens=8)
    with pytest.raises(InvalidInputError, match="the autoencoder is for activations of size 32, 5 came; load the one"):
        SparseFeatures(autoencoder).fit(np.ones((4, 5)), [0, 1, 0, 1])
    with pytest.raises(InvalidInputError, match="autoencoder='sae' is no SparseAutoencoder; pass one, such as "):
        SparseFeatures("sae").fit(np.ones((4, 5)), [0, 1, 0, 1])  # type: ignore[arg-type]


def test_it_trains_on_every_token_of_a_text_file(tmp_path: Path) -> None:
    model = tiny("gemma3")
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, "", "a much longer line of words " * 9]) + "\n")
    texts = [*TEXTS, "a much longer line of words " * 9]
    streamed = stream_activations(model, texts, 2, window=1000)
    special = model.tokenizer.all_special_ids
    whole = [model.encode_text(text) for text in texts]
    assert len(streamed) == sum(token not in special for ids in whole for token in ids)
    ids, _ = model.pad(whole[:1])
    with torch.inference_mode():
        hidden = model.model.get_decoder()(input_ids=ids, output_hidden_states=True).hidden_states[3][0]
    alone = hidden[[token not in special for token in whole[0]]]
    np.testing.assert_allclose(streamed[: len(alone)], alone, atol=1e-5)
    from_file = SparseAutoencoder(16, k=4, max_epochs=2).fit_texts(model, tmp_path / "texts.txt", layer=2)
    from_list = SparseAutoencoder(16, k=4, max_epochs=2).fit_texts(model, texts, layer=2)
    np.testing.assert_array_equal(from_file.decoder_, from_list.decoder_)
    assert len(stream_activations(model, texts, 2, window=7)) == len(streamed)
    with pytest.raises(InvalidInputError, match=re.escape("none.txt cannot be read ([Errno 2] No such file or dir")):
        SparseAutoencoder().fit_texts(model, tmp_path / "none.txt", layer=2)
    with pytest.raises(InvalidInputError, match="the texts hold no tokens but special ones; pass texts with words"):
        stream_activations(model, [str(model.tokenizer.eos_token)], 2)


def test_autoencoders_in_bf16_load(tmp_path: Path, tensors: dict[str, Any]) -> None:
    halves = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in tensors.items()}
    torch_save(halves, tmp_path / "params.safetensors")
    loaded = SparseAutoencoder.from_pretrained(tmp_path)
    assert loaded.encoder_.dtype == np.float32
    np.testing.assert_allclose(loaded.encoder_, tensors["W_enc"], rtol=1e-2)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("params.npz", b"", "cannot be read"),
        ("params.npz", b"PK garbage", "cannot be read"),
        ("cfg.json", b"[1]", "cfg.json holds a list, an object was expected; get it again."),
        ("cfg.json", b"{", "cfg.json cannot be read"),
        ("cfg.json", b'{"architecture": "topk", "k": "four"}', "is a topk autoencoder with k='four' in its settings;"),
        ("cfg.json", b'{"architecture": "topk", "activation_fn_kwargs": null}', "is a topk autoencoder with k=None"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, tensors: dict[str, Any], file: str, content: bytes, expected: str
) -> None:
    if file == "cfg.json":
        save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CorruptFileError, match=re.escape(expected)):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_weights_that_are_nan_or_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    save_file(tensors | {"threshold": np.ones(3, dtype=np.float32)}, tmp_path / "params.safetensors")
    with pytest.raises(CorruptFileError, match="that do not fit; get it again"):
        SparseAutoencoder.from_pretrained(tmp_path)
    save_file(tensors | {"b_enc": np.full(M, np.nan, dtype=np.float32)}, tmp_path / "params.safetensors")
    with pytest.raises(CorruptFileError, match="has weights that are NaN or Inf; get it again"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_a_search_leaves_the_autoencoder_of_its_user_as_it_was(tensors: dict[str, Any], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "params.safetensors")
    mine = SparseAutoencoder.from_pretrained(tmp_path)
    before = mine.k
    copied = clone(SparseFeatures(mine)).set_params(autoencoder__k=1)
    assert (mine.k, copied.autoencoder.k) == (before, 1)
    np.testing.assert_array_equal(copied.autoencoder.decoder_, mine.decoder_)


@pytest.mark.parametrize("n_features", [0, -1, 1.5, True])
def test_a_number_of_features_is_a_number(n_features: Any) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(f"n_features={n_features!r} is no whole number from 1 up;")):
        SparseFeatures(n_features=n_features).fit(np.ones((4, 5)), [0, 1, 0, 1])
