"""`calibrate`: from the cells of a sweep to a layer and a range of alphas that steer without breaking."""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd

from steerkit.exceptions import InvalidInputError, NothingSteersError
from steerkit.sweep_results import Sweep

READABLE = 0.6
"""Below this accuracy of its reader an effect is noise; guessing has 0.5."""


@dataclass(frozen=True)
class Calibration:
    """Where and how strongly to steer, as measured.

    Attributes
    ----------
    layer : int
        The layer with the largest effect span among those that beat the random control.
    alphas : tuple of float
        The usable interval at that layer: the answers are fluent and still answer their question.
    span : float
        Effect at the upper end minus effect at the lower end, in units of alpha.
    span_interval : tuple of float
        Its 95 % bootstrap interval over the prompts.
    n_prompts : int
    layers : DataFrame
        The same for each layer: ``lower``, ``upper``, ``effect_lower``, ``effect_upper``, ``span``,
        ``control_span`` (random directions, same alphas), ``collapse_lower``, ``collapse_upper`` (the first alpha
        at which `Sweep.collapsed`; NaN if none was seen).
    """

    layer: int
    alphas: tuple[float, float]
    span: float
    span_interval: tuple[float, float]
    n_prompts: int
    layers: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return all but the table of layers as JSON values."""
        return {
            "layer": self.layer,
            "alphas": list(self.alphas),
            "span": self.span,
            "span_interval": list(self.span_interval),
            "n_prompts": self.n_prompts,
        }


def calibrate(
    sweep: Sweep,
    *,
    preservation: float | None = 0.9,
    perplexity: float | None = 2.0,
    kl: float | None = None,
    divergence: pd.DataFrame | None = None,
    random_state: int = 0,
) -> Calibration:
    """Choose the layer and the alphas.

    At each layer the usable interval reaches from 0 outwards, on either side, as long as at least the share
    ``preservation`` of what the unsteered answers preserve is preserved, the answers' perplexity under the
    unsteered model is at most ``perplexity`` times that of the unsteered answers, and the next-token distributions of
    given text are moved by at most ``kl``. None leaves a bound out: with ``kl`` alone, or ``perplexity`` alone, the
    layers are compared at equal cost. Of the layers whose effect span exceeds the random control's at the same alphas,
    the one with the largest span is chosen.

    Parameters
    ----------
    sweep : Sweep
    preservation : float or None
        In (0, 1].
    perplexity : float or None
        Ratio of the geometric means over the prompts, above 1.
    kl : float, optional
        In nats per token, above 0; needs ``divergence``.
    divergence : DataFrame, optional
        What `sweep_divergence` returned for the same layers and alphas.

    Raises
    ------
    NothingSteersError
        No layer beats its random control, or the effect cannot be read from answers at all.
    """
    if preservation is not None and not 0 < preservation <= 1:
        raise InvalidInputError(f"preservation={preservation!r} is outside (0, 1]; pass a share such as 0.9.")
    if perplexity is not None and not perplexity > 1:
        raise InvalidInputError(f"perplexity={perplexity!r} is not above 1; pass a ratio such as 2.")
    moved = _divergences(sweep, kl, divergence)
    bounds = {"preservation": preservation, "perplexity": perplexity, "kl": kl}
    if not any(bounds.values()):
        raise InvalidInputError("no bound is left, so any alpha would be usable; pass preservation, perplexity or kl.")
    if "random" not in set(sweep.cells["direction"]):
        raise InvalidInputError("the sweep has no random control to compare with; sweep with controls=('random',).")
    reading = sweep.settings.get("reader_accuracy", 1.0)
    if reading < READABLE:
        raise NothingSteersError(
            f"the unsteered answers to held-out prompts of both classes are told apart with accuracy {reading:.2f}, at "
            f"least {READABLE} was expected, so no effect can be read; try other held-out prompts or longer answers."
        )
    n_prompts = len(sweep.prompts)
    kept = float(sweep.pivot("preserved")[0.0].iloc[0])
    if n_prompts < 2 or not kept:
        raise NothingSteersError(
            f"{kept:.0%} of the unsteered answers to {n_prompts} prompts are found to answer their question, some of "
            "at least 2 were expected; sweep over more prompts that the model can answer."
        )
    rows = {layer: _usable(sweep, layer, preservation, perplexity, moved, kl) for layer in sweep.layers}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
    spans = {layer: _spans(sweep, layer, row["lower"], row["upper"]) for layer, row in table.iterrows()}
    generator = np.random.default_rng(random_state)
    draws = generator.integers(0, n_prompts, size=(1000, n_prompts))
    low_above = {layer: np.quantile((f - r)[draws].mean(axis=1), 0.025) for layer, (f, r) in spans.items()}
    steering = table[[low_above[layer] > 0 for layer in table.index]]
    if steering.empty:
        raise NothingSteersError(
            f"no layer has an effect span above its random control's over {n_prompts} prompts within "
            f"{', '.join(f'{name}={bound:g}' for name, bound in bounds.items() if bound)}; try other alphas, another "
            "learner or more prompts."
        )
    layer = int(steering["span"].idxmax())
    chosen = table.loc[layer]
    low, high = np.quantile(spans[layer][0][draws].mean(axis=1), [0.025, 0.975])
    return Calibration(
        layer=layer,
        alphas=(float(chosen["lower"]), float(chosen["upper"])),
        span=float(chosen["span"]),
        span_interval=(float(low), float(high)),
        n_prompts=n_prompts,
        layers=table,
    )


def _divergences(sweep: Sweep, kl: float | None, divergence: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return the mean divergence by layer and alpha, or None where it does not count."""
    if kl is None:
        return None
    if not kl > 0 or divergence is None:
        raise InvalidInputError(
            f"kl={kl!r} needs to be above 0, and divergence=sweep_divergence(...) beside it; pass both."
        )
    fitted = divergence[divergence["direction"] == "fitted"]
    table = fitted.pivot_table(index="layer", columns="alpha", values="kl")
    if not {*sweep.layers} <= {*table.index} or not {*sweep.alphas} <= {*table.columns}:
        raise InvalidInputError(
            f"divergence has layers {list(table.index)} and alphas {list(table.columns)}, those of the sweep "
            f"({sweep.layers}, {sweep.alphas}) were expected; measure it with these."
        )
    return table.assign(**{"0.0": 0.0}).rename(columns={"0.0": 0.0})


def _usable(
    sweep: Sweep, layer: int, preservation: float | None, perplexity: float | None, moved: pd.DataFrame | None,
    kl: float | None,
) -> dict[str, float]:  # fmt: skip
    kept, ratio = sweep.pivot("preserved").loc[layer], np.exp(sweep.pivot("nll_rise").loc[layer])
    usable = pd.Series(data=True, index=kept.index)
    if preservation is not None:
        usable &= kept >= preservation * kept[0.0]
    if perplexity is not None:  # a ratio of NaN, where every answer is empty, is no ratio within bounds
        usable &= ratio <= perplexity
    if moved is not None:
        usable &= moved.loc[layer].reindex(usable.index) <= kl
    collapsed = sweep.collapsed().loc[layer]
    ends: dict[str, float] = {}
    collapse: dict[str, float] = {}
    for side, sign in (("lower", -1), ("upper", 1)):
        outward = [alpha for alpha in sorted(kept.index, key=abs) if np.sign(alpha) == sign]
        within = list(takewhile(lambda alpha: usable[alpha], outward))
        ends[side] = float(within[-1]) if within else 0.0
        collapse[f"collapse_{side}"] = float(next((alpha for alpha in outward if collapsed[alpha]), np.nan))
    effect = sweep.pivot("effect").loc[layer]
    fitted, control = _spans(sweep, layer, ends["lower"], ends["upper"])
    return {
        **ends,
        "effect_lower": float(effect[ends["lower"]]),
        "effect_upper": float(effect[ends["upper"]]),
        "span": float(fitted.mean()),
        "control_span": float(control.mean()),
        **collapse,
    }


def _spans(sweep: Sweep, layer: int, lower: float, upper: float) -> tuple[Any, Any]:
    """Return effect(upper) − effect(lower) per prompt, for the fitted and for the random directions."""
    cells = sweep.cells[sweep.cells["layer"] == layer]
    spans = []
    for direction in ("fitted", "random"):
        table = cells[cells["direction"] == direction].pivot(index="prompt", columns="alpha", values="effect")
        table = table.reindex(sweep.prompts)
        table[0.0] = 0.0
        spans.append((table[upper] - table[lower]).to_numpy())
    return spans[0], spans[1]
