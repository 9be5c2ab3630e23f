"""Every failure has a code with a status, and none is guessed."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import deployments.engine
import deployments.model
from deployments.api.errors import STATUS, engine_error
from deployments.engine.errors import EngineError
from deployments.engine.request import ErrorInfo


def tree(error: type[EngineError]) -> Iterator[type[EngineError]]:
    yield error
    for subclass in error.__subclasses__():
        if subclass.__module__.startswith("deployments."):
            yield from tree(subclass)


def test_every_error_of_the_engine_and_of_a_replica_has_a_status() -> None:
    for package in (deployments.engine, deployments.model):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                importlib.import_module(module.name)  # some of them add to the tree
            except ModuleNotFoundError as error:
                if error.name != "triton":  # the kernels need it, and raise nothing of ours
                    raise
    found = {error.code for error in tree(EngineError)}
    assert {"empty_prompt", "queue_full", "adapter_gone"} <= found, "the tree was not read"
    assert found <= set(STATUS)
    assert set(STATUS.values()) <= {400, 500, 503}


@pytest.mark.parametrize(
    ("code", "status"), [("empty_prompt", 400), ("no_model_replica", 503), ("replica_lost", 503)]
)
def test_a_code_keeps_its_name_and_says_when_to_try_again(code: str, status: int) -> None:
    error = engine_error(ErrorInfo(code, "why", "question", retry_after_s=5))
    assert (error.status, error.code, error.param) == (status, code, "question")
    assert error.headers == {"retry-after": "5"}
    assert engine_error(ErrorInfo(code, "why")).headers == {}


def test_a_code_that_nobody_listed_is_a_fault_of_ours() -> None:
    assert engine_error(ErrorInfo("brand_new", "why")).status == 500
