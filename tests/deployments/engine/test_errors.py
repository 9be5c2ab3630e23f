"""The engine's errors: one tree, one code each."""

from deployments.engine.errors import EngineError, QueueFull, RequestRefused, error_classes


def test_every_error_has_a_code_of_its_own() -> None:
    # Other modules add errors to the tree when they are imported; they have their own tests.
    classes = [c for c in error_classes() if c.__module__ == "deployments.engine.errors"]
    assert classes[:2] == [EngineError, RequestRefused]
    assert QueueFull in classes, "the walk ends above the leaves"
    assert all("code" in vars(error) for error in classes), "a code is inherited"
    codes = [error.code for error in classes]
    assert len(set(codes)) == len(codes), "two errors share a code"
