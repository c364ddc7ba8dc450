"""Every error that steerkit raises on purpose.

::

    SteerkitError
    ├── InvalidInputError        (ValueError)         what was passed cannot be used
    │   ├── ContrastSetError                          texts, labels or groups of a contrast set
    │   ├── PromptError                               an empty, non-string or over-long prompt
    │   ├── LayerError           (IndexError)         a layer that the model does not have
    │   ├── RecipeError                               a recipe with a wrong key, type or file
    │   └── NonFiniteError                            NaN or Inf where a finite number must be
    ├── NotAffineError           (TypeError)          a learner whose decision function has no direction
    ├── NotFittedError           (scikit-learn's)     used before ``fit``
    ├── ModelLoadError           (OSError)            a name or folder that is no causal language model
    ├── SteeringActiveError      (RuntimeError)       asked of a model that is being steered
    ├── BlocksNotFoundError      (AttributeError)     no residual blocks to hook
    ├── FingerprintError         (ValueError)         a direction that was made for another model
    ├── CorruptFileError         (ValueError)         a truncated, oversized or changed file
    ├── OutputExistsError        (FileExistsError)    a folder that would be overwritten
    ├── StoreError           (OSError)            finished cells cannot be kept: no room, no right to write
    ├── NothingSteersError       (ValueError)         a sweep in which nothing beats its random control
    └── MissingExtraError        (ImportError)        an optional library that is not installed

Each message says what came, what was expected and what to do, in one sentence.
"""

from sklearn.exceptions import NotFittedError as _SklearnNotFittedError


class SteerkitError(Exception):
    """Base of all errors that steerkit raises on purpose."""


class InvalidInputError(SteerkitError, ValueError):
    """What was passed cannot be used."""


class ContrastSetError(InvalidInputError):
    """The texts, labels or groups of a contrast set cannot be used."""


class PromptError(InvalidInputError):
    """A prompt is empty, no string, or longer than the model's context."""


class LayerError(InvalidInputError, IndexError):
    """The model has no such layer."""


class RecipeError(InvalidInputError):
    """A recipe has a wrong key, a wrong type or names a missing file."""


class NonFiniteError(InvalidInputError):
    """NaN or Inf where a finite number must be."""


class NotAffineError(SteerkitError, TypeError):
    """The learner's decision function is not affine, so it has no direction."""


class NotFittedError(SteerkitError, _SklearnNotFittedError):
    """The estimator is used before it is fitted."""


class ModelLoadError(SteerkitError, OSError):
    """The name or folder is no causal language model that can be loaded."""


class SteeringActiveError(SteerkitError, RuntimeError):
    """The model is being steered, so what it does now is not what was asked for."""


class BlocksNotFoundError(SteerkitError, AttributeError):
    """The residual blocks of the model cannot be found."""


class FingerprintError(SteerkitError, ValueError):
    """A direction was made for another model."""


class CorruptFileError(SteerkitError, ValueError):
    """A file is truncated, oversized or was changed after it was written."""


class OutputExistsError(SteerkitError, FileExistsError):
    """The output exists and would be overwritten."""


class StoreError(SteerkitError, OSError):
    """Finished cells cannot be kept on disk."""


class NothingSteersError(SteerkitError, ValueError):
    """No layer and alpha of a sweep steer better than the random control."""


class MissingExtraError(SteerkitError, ImportError):
    """An optional library is not installed."""
