"""The small helpers of the contract: a credential that shows itself to nobody."""

from __future__ import annotations

import logging
import pickle

import pytest

from s3dlio.engine.contract import Location, Secret
from s3dlio.engine.errors import ConfigError
from s3dlio.engine.messages import Begin, Call, TaskMessage

VALUE = "hunter2-AKIA"
LOCATION = Location("s3", "bucket/prefix", (("access_key", "public"), ("secret_key", Secret(VALUE))))


def test_no_text_of_a_secret_shows_it() -> None:
    secret = Secret(VALUE)
    texts = [repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{secret!a}", "%s %r" % (secret, secret)]  # noqa: UP031
    texts += ["{}".format(secret), str([secret]), str({"key": secret}), str((secret,))]  # noqa: UP032
    assert [text for text in texts if VALUE in text] == []
    with pytest.raises(TypeError) as caught:
        format(secret, ">20")
    assert VALUE not in str(caught.value)


def test_what_holds_a_secret_does_not_show_it() -> None:
    holders = [LOCATION, Begin(LOCATION, "key", 1), TaskMessage(1, Call(LOCATION, "head", ("key",)))]
    texts = [text for holder in holders for text in (repr(holder), str(holder))] + [LOCATION.uri]
    assert [text for text in texts if VALUE in text] == []
    assert "public" in repr(LOCATION)
    assert VALUE not in str(ConfigError(f"{LOCATION} is wrong"))


def test_logging_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("s3dlio.test")
    with caplog.at_level(logging.DEBUG, log.name):
        log.debug("%s %r %s", Secret(VALUE), Secret(VALUE), LOCATION)
        try:
            raise ConfigError(f"cannot use {Secret(VALUE)}")
        except ConfigError:
            log.exception("failed")
    assert "Secret" in caplog.text
    assert VALUE not in caplog.text


def test_a_secret_reaches_the_worker_whole_and_stays_hidden_there() -> None:
    location = pickle.loads(pickle.dumps(LOCATION))
    secret = dict(location.options)["secret_key"]
    assert location == LOCATION
    assert hash(location) == hash(LOCATION)  # a worker opens one backend for each location
    assert isinstance(secret, Secret)
    assert secret.value == VALUE
    assert VALUE not in repr(location)


def test_secrets_differ_by_their_value() -> None:
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret("other")


def test_a_secret_cannot_be_changed() -> None:
    with pytest.raises(AttributeError) as caught:
        Secret(VALUE).value = "other"  # type: ignore[misc]
    assert VALUE not in str(caught.value)
