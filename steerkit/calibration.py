"""`calibrate`: from the cells of a sweep to a layer and a range of alphas that steer without breaking."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerkit.exceptions import InvalidInputError, NothingSteersError
from steerkit.observed import observable
from steerkit.sweep_results import ROUNDING, Sweep

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
    alphas_interval : tuple of two tuples of float
        The 95 % bootstrap interval over the prompts of the lower and of the upper end.
    span : float
        Effect at the upper end minus effect at the lower end, in units of alpha.
    span_interval : tuple of float
        Its 95 % bootstrap interval over the prompts.
    n_prompts : int
    layers : DataFrame
        The same for each layer: ``lower``, ``upper``, ``effect_lower``, ``effect_upper``, ``span``, ``anti_steerable``
        (the share of prompts whose `Sweep.slopes` between these alphas is below 0),
        ``control_span`` (random directions, same alphas), ``collapse_lower``, ``collapse_upper`` (the first alpha
        at which `Sweep.collapsed`; NaN if none was seen).
    """

    layer: int
    alphas: tuple[float, float]
    alphas_interval: tuple[tuple[float, float], tuple[float, float]]
    span: float
    span_interval: tuple[float, float]
    n_prompts: int
    layers: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return all but the table of layers as JSON values."""
        return {
            "layer": self.layer,
            "alphas": list(self.alphas),
            "alphas_interval": [list(end) for end in self.alphas_interval],
            "span": self.span,
            "span_interval": list(self.span_interval),
            "n_prompts": self.n_prompts,
        }


@observable
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
    bounds = _Bounds(preservation, perplexity, kl, _divergences(sweep, kl, divergence))
    if not str(bounds):
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
    if n_prompts < 2 or (preservation is not None and not kept):
        raise NothingSteersError(
            f"{kept:.0%} of the unsteered answers to {n_prompts} prompts are found to answer their question, some of "
            "at least 2 were expected; sweep over more prompts that the model can answer."
        )
    rows = {layer: _layer(sweep, layer, bounds) for layer in sweep.layers}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
    spans = {layer: _spans(sweep, layer, row["lower"], row["upper"]) for layer, row in table.iterrows()}
    generator = np.random.default_rng(random_state)
    draws = generator.integers(0, n_prompts, size=(1000, n_prompts))
    low_above = {layer: np.quantile((f - r)[draws].mean(axis=1), 0.025) for layer, (f, r) in spans.items()}
    steering = table[[low_above[layer] > 0 for layer in table.index]]
    if steering.empty:
        raise NothingSteersError(
            f"no layer has an effect span above its random control's over {n_prompts} prompts within {bounds}; try "
            "other alphas, another learner or more prompts."
        )
    layer = int(steering["span"].idxmax())
    chosen = table.loc[layer]
    ends = np.quantile(bounds.ends(sweep, layer, draws), [0.025, 0.975], axis=0, method="nearest").tolist()
    low, high = np.quantile(spans[layer][0][draws].mean(axis=1), [0.025, 0.975])
    return Calibration(
        layer=layer,
        alphas=(float(chosen["lower"]), float(chosen["upper"])),
        alphas_interval=((ends[0][0], ends[1][0]), (ends[0][1], ends[1][1])),
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


@dataclass(frozen=True)
class _Bounds:
    """What an alpha must keep to be usable; None where it does not count."""

    preservation: float | None
    perplexity: float | None
    kl: float | None
    divergences: pd.DataFrame | None

    def __str__(self) -> str:
        named = {"preservation": self.preservation, "perplexity": self.perplexity, "kl": self.kl}
        return ", ".join(f"{name}={bound:g}" for name, bound in named.items() if bound is not None)

    def ends(self, sweep: Sweep, layer: int, draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the usable interval for each drawing of prompts, ``(n_draws, 2)``."""
        tables = [_by_prompt(sweep, layer, metric) for metric in ("preserved", "nll_rise")]
        alphas = tables[0].columns.to_numpy(dtype=np.float64)
        zero = int(np.flatnonzero(alphas == 0.0)[0])
        kept, rise = (_means(table.to_numpy(dtype=np.float64), draws) for table in tables)
        usable = np.ones(kept.shape, dtype=bool)
        if self.preservation is not None:
            usable &= (kept >= self.preservation * kept[:, [zero]] - ROUNDING) & (kept[:, [zero]] > 0)
        if self.perplexity is not None:  # a rise of NaN, where every answer is empty, is no rise within bounds
            usable &= np.exp(rise) <= self.perplexity
        if self.divergences is not None:
            usable &= self.divergences.loc[layer, alphas].to_numpy() <= self.kl
        usable[:, zero] = True
        steps_up = np.logical_and.accumulate(usable[:, zero:], axis=1).sum(axis=1) - 1
        steps_down = np.logical_and.accumulate(usable[:, zero::-1], axis=1).sum(axis=1) - 1
        return np.stack([alphas[zero - steps_down], alphas[zero + steps_up]], axis=1)


def _by_prompt(sweep: Sweep, layer: int, metric: str) -> pd.DataFrame:
    """Return a metric of the fitted direction, prompts down and alphas (0 included) across, ascending."""
    cells = sweep.cells[(sweep.cells["layer"] == layer) & (sweep.cells["direction"] == "fitted")]
    bare = sweep.cells[sweep.cells["direction"] == "unsteered"]
    table = pd.concat([cells, bare]).pivot(index="prompt", columns="alpha", values=metric)
    return table.reindex(sweep.prompts).sort_index(axis=1)


def _means(values: NDArray[np.float64], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean over the drawn rows, NaN left out, ``(n_draws, n_columns)``."""
    drawn = values[draws]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(drawn, axis=1) / np.isfinite(drawn).sum(axis=1))


def _layer(sweep: Sweep, layer: int, bounds: _Bounds) -> dict[str, float]:
    """Return the row of a layer in `Calibration.layers`."""
    lower, upper = map(float, bounds.ends(sweep, layer, np.arange(len(sweep.prompts))[None])[0])
    ends = {"lower": lower, "upper": upper}
    collapsed, collapse = sweep.collapsed().loc[layer], {}
    for side, sign in (("lower", -1), ("upper", 1)):
        outward = [alpha for alpha in sorted(collapsed.index, key=abs) if np.sign(alpha) == sign]
        collapse[f"collapse_{side}"] = float(next((alpha for alpha in outward if collapsed[alpha]), np.nan))
    effect = sweep.pivot("effect").loc[layer]
    fitted, control = _spans(sweep, layer, ends["lower"], ends["upper"])
    return {
        **ends,
        "effect_lower": float(effect[ends["lower"]]),
        "effect_upper": float(effect[ends["upper"]]),
        "span": float(fitted.mean()),
        "anti_steerable": _share_below(sweep.slopes(layer, alphas=(ends["lower"], ends["upper"]))),
        "control_span": float(control.mean()),
        **collapse,
    }


def _share_below(slopes: "pd.Series[float]") -> float:
    return float((slopes.dropna() < 0).mean())


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
