"""A batched sweep is the naive loop, measured; a calibration finds what was planted in its cells."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerkit.bracketing import LARGEST, bracketed_alphas
from steerkit.calibration import calibrate
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import CorruptFileError, InvalidInputError, LayerError, NonFiniteError, NothingSteersError
from steerkit.language_model import LanguageModel
from steerkit.likelihood import question_likelihoods
from steerkit.reading import EffectReader, generate
from steerkit.sweep_results import Sweep
from steerkit.sweeps import sweep
from tests.models import LABELS, TEXTS, planted_sweep

PROMPTS, ALPHAS = TEXTS[:3], [-1.0, 0.5]


@pytest.fixture(scope="module")
def reader(fitted: SteeringEstimator) -> EffectReader:
    return EffectReader(LanguageModel.of(fitted.model), max_new_tokens=6).fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def swept(fitted: SteeringEstimator, reader: EffectReader) -> Sweep:
    return sweep(fitted, PROMPTS, reader=reader, alphas=ALPHAS, distractors=TEXTS[6:8], max_new_tokens=6)


def test_a_batched_sweep_is_the_naive_loop(model: LanguageModel) -> None:
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    reader = EffectReader(model, max_new_tokens=6).fit(TEXTS, LABELS)
    cells = sweep(estimator, PROMPTS, reader=reader, alphas=ALPHAS, max_new_tokens=6).cells
    fitted = cells[cells["direction"] == "fitted"]
    assert len(fitted) == 4 * 2 * 3
    for cell in fitted.itertuples():
        alone = estimator.export(cell.alpha, layer=cell.layer).generate(cell.prompt, max_new_tokens=6)
        assert cell.text == alone
    unsteered = cells[cells["direction"] == "unsteered"]["text"].tolist()
    assert unsteered == generate(model, model.encode(PROMPTS), max_new_tokens=6)


def test_batch_rows_make_no_difference(fitted: SteeringEstimator, reader: EffectReader, swept: Sweep) -> None:
    small = sweep(fitted, PROMPTS, reader=reader, alphas=ALPHAS, distractors=TEXTS[6:8], max_new_tokens=6, batch_rows=5)
    assert small.cells["text"].tolist() == swept.cells["text"].tolist()
    pd.testing.assert_frame_equal(small.cells, swept.cells, rtol=1e-4)


def test_cells_are_complete_and_metrics_are_their_definitions(
    fitted: SteeringEstimator, reader: EffectReader, swept: Sweep
) -> None:
    cells = swept.cells
    assert len(cells) == 3 + 2 * 4 * 2 * 3
    assert swept.layers == [0, 1, 2, 3]
    assert swept.prompts == PROMPTS
    bare = cells[cells["direction"] == "unsteered"].set_index("prompt")
    assert (bare["effect"] == 0).all()
    assert (bare["nll_rise"] == 0).all()
    expected = reader.read(cells["text"].tolist()) - reader.read(cells["prompt"].map(bare["text"]).tolist())
    np.testing.assert_allclose(cells["effect"], expected, atol=1e-6)
    own, other = question_likelihoods(
        LanguageModel.of(fitted.model), cells["prompt"].tolist(), cells["text"].tolist(), [*PROMPTS, *TEXTS[6:8]]
    )
    np.testing.assert_allclose(cells["margin"], own - other, atol=1e-5)
    rise = -own - cells["prompt"].map(dict(zip(PROMPTS, -own[:3], strict=True)))
    np.testing.assert_allclose(cells["nll_rise"], rise, atol=1e-5)
    on_topic, babble = own > other, rise >= np.log(5)
    assert (on_topic & babble).any()
    np.testing.assert_array_equal(cells["preserved"], on_topic & ~babble)


def test_the_random_control_has_equal_norm_and_no_other_seed_gives_it(
    fitted: SteeringEstimator, reader: EffectReader, swept: Sweep
) -> None:
    options: dict[str, Any] = {"reader": reader, "alphas": ALPHAS, "distractors": TEXTS[6:8], "max_new_tokens": 6}
    same, other = sweep(fitted, PROMPTS, **options), sweep(fitted, PROMPTS, random_state=1, **options)
    control = swept.cells["direction"] == "random"
    assert same.cells["text"].equals(swept.cells["text"])
    assert not other.cells["text"][control].equals(swept.cells["text"][control])
    assert other.cells["text"][~control].equals(swept.cells["text"][~control])


def test_without_the_control_half_is_generated_and_calibration_refuses(
    fitted: SteeringEstimator, reader: EffectReader, swept: Sweep
) -> None:
    bare = sweep(
        fitted, PROMPTS, reader=reader, alphas=ALPHAS, distractors=TEXTS[6:8], max_new_tokens=6, controls=()
    ).cells
    expected = swept.cells[swept.cells["direction"] != "random"].reset_index(drop=True)
    assert bare["text"].tolist() == expected["text"].tolist()
    with pytest.raises(
        InvalidInputError,
        match=r"^the sweep has no random control to compare with; sweep with controls=\('random',\)\.$",
    ):
        calibrate(Sweep(bare, {}))
    with pytest.raises(
        InvalidInputError, match=r"^controls=\('none',\) is not known; pass some of 'random', 'shuffled'\.$"
    ):
        sweep(fitted, PROMPTS, reader=reader, controls=("none",))


def test_a_pivot_holds_means_and_the_unsteered_column(swept: Sweep) -> None:
    table = swept.pivot("preserved")
    assert table.columns.tolist() == [-1.0, 0.0, 0.5]
    assert table.index.tolist() == [0, 1, 2, 3]
    cells = swept.cells
    cell = cells[(cells["direction"] == "fitted") & (cells["layer"] == 1) & (cells["alpha"] == 0.5)]
    assert table.loc[1, 0.5] == cell["preserved"].mean()
    assert table[0.0].nunique() == 1
    assert swept.answers(PROMPTS[0], 2)["alpha"].tolist() == [-1.0, 0.0, 0.5]
    with pytest.raises(InvalidInputError, match="metric='taste' is not known; pass one of 'effect', 'preserved',"):
        swept.pivot("taste")


def test_a_saved_sweep_loads_equal(swept: Sweep, tmp_path: Path) -> None:
    swept.save(tmp_path / "sweep")
    loaded = Sweep.load(tmp_path / "sweep")
    pd.testing.assert_frame_equal(loaded.cells, swept.cells, check_exact=True)
    odd = Sweep(swept.cells.assign(alpha=swept.cells["alpha"] * 0.7, margin=np.nan), {})
    odd.save(tmp_path / "odd")
    pd.testing.assert_frame_equal(Sweep.load(tmp_path / "odd").cells, odd.cells, check_exact=True)
    assert loaded.settings == swept.settings
    (tmp_path / "sweep" / "cells.jsonl").write_text("{half")
    with pytest.raises(CorruptFileError, match="holds no readable sweep"):
        Sweep.load(tmp_path / "sweep")


def test_without_alphas_they_reach_from_next_to_nothing_to_collapse(
    fitted: SteeringEstimator, reader: EffectReader, tmp_path: Path
) -> None:
    found = sweep(fitted, PROMPTS, reader=reader, layers=[1, 2], max_new_tokens=6, resume=tmp_path / "cells")
    sizes = [alpha for alpha in found.alphas if alpha > 0]
    assert found.alphas == [-size for size in reversed(sizes)] + sizes
    assert found.collapsed().any(axis=None) or sizes[-1] == LARGEST
    again = sweep(
        fitted, PROMPTS, reader=reader, layers=[1, 2], alphas=found.alphas, max_new_tokens=6, resume=tmp_path / "cells"
    )
    pd.testing.assert_frame_equal(again.cells, found.cells)


def test_alphas_are_doubled_until_every_layer_has_collapsed_on_both_sides() -> None:
    tried: list[float] = []

    def measure(alpha: float) -> Sweep:
        tried.append(alpha)
        return breaking_sweep({1: 0.05, 2: 0.3}, [-alpha, alpha])

    alphas = bracketed_alphas(measure)
    assert tried == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32])
    assert alphas[-1] == 0.32
    sizes = [0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24, 0.32]  # from an eighth of the first collapse to the last
    assert alphas == pytest.approx([-size for size in reversed(sizes)] + sizes)


def breaking_sweep(ends: dict[int, float], alphas: list[float]) -> Sweep:
    """A sweep whose layers break down beyond an alpha of their own."""
    rows = [("unsteered", -1, 0.0, 1.0, 0.0)]
    rows += [
        ("fitted", layer, a, float(abs(a) <= end), 3.0 * (abs(a) > end)) for layer, end in ends.items() for a in alphas
    ]
    cells = pd.DataFrame(rows, columns=["direction", "layer", "alpha", "preserved", "nll_rise"])
    others = {"margin": 0.0, "distinct_2": 1.0, "length": 3.0, "effect": cells["alpha"]}
    return Sweep(cells.assign(prompt="what", text="that", **others), {})


def test_where_nothing_is_preserved_nothing_is_lost() -> None:
    swept = breaking_sweep({1: 0.05}, [0.2, 0.4])
    swept.cells["preserved"] = 0.0
    swept.cells["nll_rise"] = 0.0
    assert not swept.collapsed().any(axis=None)
    with pytest.raises(NothingSteersError):
        swept.best()
    for wrong in (lambda: swept.slopes(99), lambda: swept.collapsed(direction="fittd")):
        with pytest.raises(InvalidInputError, match="was not swept; pass one of"):
            wrong()


def test_nine_tenths_of_twenty_are_eighteen() -> None:
    swept = planted_sweep(n_prompts=25)
    lost = swept.cells["prompt"].isin([f"q{i}" for i in range(20, 25)])
    swept.cells.loc[lost, "preserved"] = 0.0
    swept.cells.loc[(swept.cells["layer"] == 2) & swept.cells["prompt"].isin(["q0", "q1"]), "preserved"] = 0.0
    assert calibrate(swept, preservation=0.9).alphas == (-0.4, 0.4)


def test_a_larger_sweep_has_the_same_random_directions(
    fitted: SteeringEstimator, reader: EffectReader, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"reader": reader, "alphas": [0.5], "max_new_tokens": 6, "resume": tmp_path / "cells"}
    small = sweep(fitted, PROMPTS, layers=[2], **options).cells
    large = sweep(fitted, PROMPTS, layers=[0, 2], **options).cells
    both = small.merge(large, on=["direction", "layer", "alpha", "prompt"])
    assert len(both) == len(small)
    assert (both["text_x"] == both["text_y"]).all()
    assert (both["effect_x"] == both["effect_y"]).all()


def test_a_metric_that_fails_costs_its_own_column_only(fitted: SteeringEstimator, reader: EffectReader) -> None:
    def failing(_prompt: str, _answer: str) -> float:
        raise ZeroDivisionError("nothing to divide")

    with pytest.warns(UserWarning, match="metric 'failing' failed \\(ZeroDivisionError: nothing to divide\\), so its"):
        swept = sweep(
            fitted, PROMPTS, reader=reader, layers=[2], alphas=[0.5], max_new_tokens=6, metrics=[failing, len_of]
        )
    assert swept.cells["failing"].isna().all()
    assert swept.cells["len_of"].notna().all()
    with pytest.raises(InvalidInputError, match="have a name twice; call one something else"):
        sweep(fitted, PROMPTS, reader=reader, layers=[2], alphas=[0.5], metrics=[len_of, len_of])


def len_of(_prompt: str, answer: str) -> float:
    return len(answer)


def test_the_best_cell_has_most_effect_of_those_that_keep_the_answers() -> None:
    best = breaking_sweep({1: 0.05, 2: 0.3}, [-0.4, -0.2, 0.2, 0.4]).best()
    assert (best["layer"], best["alpha"]) == (2, 0.2)
    with pytest.raises(NothingSteersError, match="no layer and alpha preserves 90% of the answers with at most"):
        breaking_sweep({1: 0.05}, [0.4]).best()
    with pytest.raises(InvalidInputError, match=r"^metric='speed' is not known; pass one of 'preserved', 'nll_rise',"):
        breaking_sweep({1: 0.05}, [0.4]).best("speed")


def test_given_directions_are_compared_at_equal_norm(fitted: SteeringEstimator, reader: EffectReader) -> None:
    twin = fitted.directions_[[1, 2]] * 7
    cells = sweep(
        fitted, PROMPTS, reader=reader, layers=[1, 2], alphas=[0.5], controls=(), max_new_tokens=6,
        directions={"twin": twin, "one": np.ones(fitted.directions_.shape[1])},
    ).cells  # fmt: skip
    by_kind = {kind: rows["text"].tolist() for kind, rows in cells.groupby("direction")}
    assert by_kind["twin"] == by_kind["fitted"]
    assert len(by_kind["one"]) == len(by_kind["fitted"])
    for name, given, expected in (
        ("random", np.ones(3), "directions['random'] has a name that a sweep uses itself; call it something else."),
        ("mine", np.ones(3), "directions['mine'] has shape (3,), (32,) or (2, 32) was expected; pass one for all"),
        ("mine", np.zeros(32), "directions['mine'] is zero or not finite, so it points nowhere; pass another."),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(expected)):
            sweep(fitted, PROMPTS, reader=reader, layers=[1, 2], alphas=[0.5], directions={name: given})


def test_sampled_answers_depend_on_prompt_and_seed_alone(fitted: SteeringEstimator, reader: EffectReader) -> None:
    options: dict[str, Any] = {"reader": reader, "layers": [2], "controls": (), "max_new_tokens": 6, "temperature": 1.5}
    full = sweep(fitted, PROMPTS, alphas=[-0.2, 1e-9], random_state=1, **options).cells
    small = sweep(fitted, PROMPTS[1:], alphas=[1e-9], random_state=1, batch_rows=1, **options).cells
    merged = small.merge(full, on=["direction", "layer", "alpha", "prompt"])
    assert (merged["text_x"] == merged["text_y"]).all()
    bare = full[full["direction"] == "unsteered"]["text"].tolist()
    assert bare == full[full["alpha"] == 1e-9]["text"].tolist()  # the same chance at every alpha
    other = sweep(fitted, PROMPTS, alphas=[1e-9], random_state=2, **options).cells
    assert other[other["direction"] == "unsteered"]["text"].tolist() != bare


def test_bad_sweeps_are_refused_before_any_work(fitted: SteeringEstimator, reader: EffectReader) -> None:
    with pytest.raises(
        InvalidInputError, match=re.escape("1 prompts and 0 distractors came, no prompt twice and at least")
    ):
        sweep(fitted, PROMPTS[:1], reader=reader)
    with pytest.raises(InvalidInputError, match="2 prompts and 0 distractors came, no prompt twice"):
        sweep(fitted, PROMPTS[:1] * 2, reader=reader)
    with pytest.raises(
        NonFiniteError, match=re.escape("alphas=[0.1, nan] must hold finite numbers other than 0; pass")
    ):
        sweep(fitted, PROMPTS, reader=reader, alphas=[0.1, float("nan")])
    with pytest.raises(LayerError, match=r"layer=9 is outside 0\.\.3"):
        sweep(fitted, PROMPTS, reader=reader, layers=[9])


def test_calibration_finds_the_planted_layer_range_and_collapse() -> None:
    found = calibrate(planted_sweep())
    assert found.layer == 2
    assert found.alphas == (-0.4, 0.4)
    assert found.layers.loc[2, ["collapse_lower", "collapse_upper"]].tolist() == [-0.6, 0.6]
    assert found.layers.loc[1, ["lower", "upper"]].tolist() == [-0.6, 0.6]
    assert np.isnan(found.layers.loc[1, "collapse_upper"])
    assert found.span == pytest.approx(0.8, abs=0.05)
    assert found.span_interval[0] < found.span < found.span_interval[1]
    assert found.n_prompts == 12
    assert found.alphas_interval == ((-0.4, -0.4), (0.4, 0.4))
    assert found.layers.loc[2, "anti_steerable"] == 0


def test_the_usable_interval_is_as_certain_as_the_prompts_agree() -> None:
    cells = planted_sweep().cells
    broken = (cells["alpha"] == 0.4) & (cells["layer"] == 2) & (cells["prompt"] == "q0")
    cells.loc[broken, "preserved"] = 0.0  # one answer of twelve: within the bound here, not in every resample
    found = calibrate(Sweep(cells, {}))
    assert found.alphas == (-0.4, 0.4)
    assert found.alphas_interval == ((-0.4, -0.4), (0.2, 0.4))


def test_prompts_that_move_the_wrong_way_are_counted() -> None:
    cells = planted_sweep().cells
    contrary = (cells["layer"] == 2) & cells["prompt"].isin(["q3", "q4", "q5"])
    cells.loc[contrary, "effect"] *= -1
    swept = Sweep(cells, {})
    slopes = swept.slopes(2)
    assert slopes[slopes < 0].index.tolist() == ["q3", "q4", "q5"]
    assert slopes.abs().to_numpy() == pytest.approx(np.ones(12), abs=0.1)
    assert calibrate(swept).layers.loc[2, "anti_steerable"] == 0.25
    assert swept.slopes(2, alphas=(-0.1, 0.1)).isna().all()


def test_calibration_stops_where_fluency_ends() -> None:
    """Babble on the topic is found by its question still; its perplexity tells."""
    broken = planted_sweep()
    babble = (broken.cells["layer"] == 2) & (broken.cells["alpha"].abs() > 0.3)
    broken.cells.loc[babble, "nll_rise"] = np.log(5.0)
    found = calibrate(broken)
    assert found.layers.loc[2, ["lower", "upper", "collapse_lower"]].tolist() == [-0.2, 0.2, -0.6]
    assert calibrate(broken, perplexity=6.0).layers.loc[2, "upper"] == 0.4
    broken.cells.loc[babble, "nll_rise"] = np.nan  # nothing is left
    assert calibrate(broken).layers.loc[2, ["upper", "collapse_upper"]].tolist() == [0.2, 0.4]


def test_calibration_refuses_where_nothing_beats_the_control() -> None:
    expected = (
        "no layer has an effect span above its random control's over 12 prompts within preservation=0.9, perplexity=2; "
        "try other alphas, another learner or more prompts."
    )
    with pytest.raises(NothingSteersError, match=re.escape(expected)):
        calibrate(planted_sweep(steering=0.0))
    silent = planted_sweep()
    silent.cells["preserved"] = 0.0
    with pytest.raises(NothingSteersError, match="0% of the unsteered answers to 12 prompts are found to answer their"):
        calibrate(silent)
    unreadable = Sweep(planted_sweep().cells, {"reader_accuracy": 0.52})
    with pytest.raises(NothingSteersError, match=r"are told apart with accuracy 0\.52, at least 0\.6 was expected,"):
        calibrate(unreadable)
    with pytest.raises(
        InvalidInputError, match=re.escape("preservation=1.5 is outside (0, 1]; pass a share such as 0.9.")
    ):
        calibrate(planted_sweep(), preservation=1.5)
    with pytest.raises(InvalidInputError, match=re.escape("perplexity=1 is not above 1; pass a ratio such as 2.")):
        calibrate(planted_sweep(), perplexity=1)


def test_a_calibration_says_where_and_how_strongly_an_export_steers(fitted: SteeringEstimator) -> None:
    found = calibrate(planted_sweep())
    steered = fitted.export(calibration=found)
    assert (steered.vectors[0].layer, steered.alpha) == (2, 0.4)
    assert fitted.export(calibration=replace(found, alphas=(-0.2, 0.0))).alpha == -0.2
    assert fitted.export(0.1, layer=1, calibration=found).alpha == 0.1
