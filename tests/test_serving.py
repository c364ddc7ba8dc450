"""`mlflow models serve`, as a process of its own, over HTTP."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

import steerkit.mlflow
from steerkit.estimator import SteeringEstimator
from steerkit.steered import SteeredModel
from tests.models import TEXTS
from tests.servers import MLFLOW_WARNS, free_port, running

ALPHAS = [-3.0, -1.0, 0.0, 0.5, 2.0]


pytestmark = MLFLOW_WARNS


@pytest.fixture(scope="module")
def address(fitted: SteeringEstimator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a served tiny model."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    steerkit.mlflow.save_model(fitted.export(0.5), folder / "model")
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--host", "127.0.0.1"]
    command = [*serve, "--port", str(port), "--model-uri", str(folder / "model")]
    with running(command, folder / "log", answers=f"http://127.0.0.1:{port}/ping"):
        yield f"http://127.0.0.1:{port}/invocations"


@pytest.fixture(scope="module")
def steered(fitted: SteeringEstimator) -> SteeredModel:
    return fitted.export(0.5)


def ask(address: str, prompts: Any, **params: Any) -> requests.Response:
    return requests.post(address, json={"inputs": prompts, "params": {"max_new_tokens": 8, **params}}, timeout=60)


def test_two_hundred_requests_of_eight_clients_each_get_their_own_alpha(address: str, steered: SteeredModel) -> None:
    expected = {a: steered.generate(TEXTS[:2], alpha=a, max_new_tokens=8) for a in ALPHAS}
    assert len({*map(tuple, expected.values())}) == len(ALPHAS)
    alphas = [ALPHAS[i % len(ALPHAS)] for i in range(200)]
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda alpha: ask(address, TEXTS[:2], alpha=alpha), alphas))
    print(f"200 requests of 8 clients in {time.perf_counter() - start:.1f} s")
    assert [response.status_code for response in responses] == [200] * 200
    assert [response.json()["predictions"] for response in responses] == [expected[alpha] for alpha in alphas]


def test_alpha_of_a_request_does_not_leak_into_the_next(address: str, steered: SteeredModel) -> None:
    default = steered.generate(TEXTS[:1], max_new_tokens=8)
    for alpha in (3.0, None, -3.0, None):
        given = {} if alpha is None else {"alpha": alpha}
        expected = default if alpha is None else steered.generate(TEXTS[:1], alpha=alpha, max_new_tokens=8)
        assert ask(address, TEXTS[:1], **given).json() == {"predictions": expected}


def test_text_chat_tables_and_openai_bodies_are_understood(address: str, steered: SteeredModel) -> None:
    chat = [{"role": "user", "content": TEXTS[0]}]
    expected = steered.generate([TEXTS[0], TEXTS[0]], max_new_tokens=8)
    bodies: list[dict[str, Any]] = [
        {"inputs": TEXTS[0]},
        {"inputs": [TEXTS[0], TEXTS[0]]},
        {"inputs": chat},
        {"inputs": [chat, chat]},
        {"instances": [TEXTS[0], TEXTS[0]]},
        {"dataframe_records": [{"prompt": TEXTS[0]}]},
        {"dataframe_split": {"columns": ["prompt"], "data": [[TEXTS[0]]]}},
    ]
    for body in bodies:
        request = {**body, "params": {"max_new_tokens": 8}}
        predictions = requests.post(address, json=request, timeout=60).json()["predictions"]
        assert predictions == expected[: len(predictions)], body
    bare = requests.post(address, json={"messages": chat, "max_new_tokens": 8, "alpha": 0.5}, timeout=60)
    assert bare.json() == expected[:1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"alfa": 0.1},
            "'alfa' is no parameter of this model; pass some of alpha, max_new_tokens, temperature, layer.",
        ),
        ({"alpha": "strong"}, "alpha='strong' is a str, a finite number was expected; pass one such as 0.07."),
        ({"alpha": True}, "alpha=True is a bool, a finite number was expected; pass one such as 0.07."),
        ({"max_new_tokens": "8"}, "max_new_tokens='8' is a str, a whole number was expected; pass one such as 8."),
        ({"layer": 77}, "layer=77 has no direction in this model; pass one of its layers (0)."),
    ],
)
def test_bad_parameters_get_status_400_and_our_sentence(address: str, params: dict[str, Any], message: str) -> None:
    response = ask(address, TEXTS[:1], **params)
    assert response.status_code == 400
    assert response.json()["message"].endswith(f"\nError: {message}")


def test_an_over_long_prompt_does_not_take_the_server_down(address: str) -> None:
    for prompt, length in (("star " * 130, 131), ("star " * 200_000, 200_001)):
        response = ask(address, [prompt])
        assert response.status_code == 400
        assert f"prompt 0 has {length} tokens, " in response.json()["message"]
    assert ask(address, TEXTS[:1], max_new_tokens=10**9).status_code == 400
    assert requests.post(address, data="{", headers={"Content-Type": "application/json"}, timeout=60).status_code == 400
    assert ask(address, TEXTS[:1]).status_code == 200
