from __future__ import annotations

import inspect
import pickle
import traceback

import pytest

from s3dlio.engine import errors
from s3dlio.engine.messages import Failure, error_of, failure_of

ERRORS = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.S3dlioError) and cls.__module__ == errors.__name__
]


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_of_ours_survives_the_journey(cls: type[errors.S3dlioError]) -> None:
    failure = pickle.loads(pickle.dumps(failure_of(cls("what happened"), "the trace")))
    error = error_of(failure)
    assert type(error) is cls
    assert str(error) == "what happened"
    assert str(error.__cause__) == "in a worker process:\nthe trace"


@pytest.mark.parametrize("transient", [False, True])
def test_transience_survives(transient: bool) -> None:
    error = error_of(failure_of(errors.StorageFullError("full", transient=transient), ""))
    assert isinstance(error, errors.StorageFullError)
    assert error.transient is transient


def test_a_foreign_error_keeps_its_name() -> None:
    error = error_of(failure_of(ZeroDivisionError("by zero"), ""))
    assert type(error) is errors.S3dlioError
    assert str(error) == "ZeroDivisionError: by zero"


def test_an_unknown_kind_is_the_root() -> None:
    assert type(error_of(Failure("NoSuchError", "text", False, ""))) is errors.S3dlioError


def test_the_workers_traceback_is_shown() -> None:
    error = error_of(Failure("CorruptError", "text", False, "line 7 of a backend"))
    assert "in a worker process:\nline 7 of a backend" in "".join(traceback.format_exception(error))
