"""The steered model as an MLflow pyfunc, logged as this code beside safetensors and JSON: no pickle."""

from typing import Any

import mlflow


class SteeredPyfunc(mlflow.pyfunc.PythonModel):
    """Answers a list of prompts; ``params`` may hold ``alpha`` and ``max_new_tokens``."""

    def load_context(self, context: Any) -> None:
        """Load the steered model from the artifact."""
        from steerkit.steered import SteeredModel

        self.steered = SteeredModel.from_pretrained(context.artifacts["steered"])

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        """Return one answer per prompt."""
        return list(self.steered.generate(list(model_input), **(params or {})))


mlflow.models.set_model(SteeredPyfunc())
