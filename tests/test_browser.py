"""What a browser shows of `steerkit ui`, with nothing to click but what an MLflow user would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steerkit.estimator import SteeringEstimator
from tests.models import planted_sweep
from tests.servers import MLFLOW_WARNS

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not there: apt-get install chromium"),
    *MLFLOW_WARNS,
]
PLOTS = "Array.from(document.querySelectorAll('.js-plotly-plot')).flatMap(plot => plot.data || [])"


@pytest.fixture(scope="module")
def page(ui: dict[str, str]) -> Iterator[Any]:
    """A page that may load from loopback only; what else it asks for is an error."""
    from playwright.sync_api import sync_playwright

    del ui
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        yield page
        browser.close()
    outside = [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))]
    assert outside == []


def visit(page: Any, address: str) -> None:
    """Open an address as in a new tab."""
    page.goto("about:blank")
    page.goto(address)


def plots(page: Any, kind: str, *, least: int = 1) -> list[dict[str, Any]]:
    """Wait until plots of a kind are drawn, and return their data."""
    found = f"{PLOTS}.filter(trace => (trace.type || 'scatter') === '{kind}')"
    page.wait_for_function(f"{found}.length >= {least}", timeout=60_000)
    return list(page.evaluate(f"JSON.parse(JSON.stringify({found}))"))


def test_the_experiment_page_lists_the_runs(page: Any, ui: dict[str, str]) -> None:
    visit(page, ui["runs beside it"])
    for name in ("tiny mean-diff", "tiny mass-mean"):
        page.get_by_text(name, exact=True).first.wait_for(timeout=60_000)


def test_the_chart_over_the_layers_has_its_points(page: Any, ui: dict[str, str], fitted: SteeringEstimator) -> None:
    visit(page, ui["last run"])
    curves = [(trace["x"], trace["y"]) for trace in plots(page, "scatter", least=4) if len(trace["x"]) > 1]
    norms = pytest.approx(fitted.norms_.tolist())  # of both learners: they are the model's
    assert ([0, 1, 2, 3], norms) in curves


def test_the_compare_page_draws_layer_and_alpha_against_the_effect(page: Any, ui: dict[str, str]) -> None:
    visit(page, ui["last sweep"])
    (lines,) = plots(page, "parcoords")
    assert [dimension["label"] for dimension in lines["dimensions"]] == ["alpha", "layer", "effect"]
    page.get_by_role("tab", name="Contour Plot").click()
    (contour, *_) = plots(page, "contour")
    effects = planted_sweep().pivot("effect").drop(columns=0.0).stack()
    drawn = {(y, x): z for x, y, z in zip(contour["x"], contour["y"], contour["z"], strict=True)}
    assert drawn == {key: pytest.approx(value, abs=1e-9) for key, value in effects.to_dict().items()}
    page.get_by_text("Comparing 18 Runs from 1 Experiment").wait_for()


def test_learners_are_compared_by_nothing_but_the_learner(page: Any, ui: dict[str, str]) -> None:
    visit(page, ui["compare runs"])
    (lines,) = plots(page, "parcoords")
    assert [dimension["label"] for dimension in lines["dimensions"]] == ["learner", "effect_span"]
