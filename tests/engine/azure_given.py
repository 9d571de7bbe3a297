"""Credentials of no meaning and what a worker reads of them: for tests of ``az://`` options."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping

from s3dlio.engine.backends.azure_options import AzureOptions, parse, read

KEY = base64.b64encode(b"the key of an account, of no meaning").decode()
OTHER = base64.b64encode(b"another key").decode()
SIGNATURE = "SiGnAtUrEoFaToKeN"
SAS = f"sv=2026-01-01&se=2030-01-02T03:04Z&sp=rwl&sig={SIGNATURE}%3D"
STRING = f"DefaultEndpointsProtocol=https;AccountName=account;AccountKey={KEY};EndpointSuffix=core.windows.net"
PUBLIC = "https://account.blob.core.windows.net"


def record(
    options: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    rest: str = "account/box/runs",
) -> AzureOptions:
    """What a worker reads of a location that was parsed and sent to it."""
    location = parse("account/box/runs", {"account_key": KEY} if options is None else options, environ or {})
    return read(pickle.loads(pickle.dumps(location)))


def shown(error: BaseException) -> str:
    """All that a log or a traceback would show of an error."""
    texts = []
    at: BaseException | None = error
    while at is not None:
        texts.append(f"{at!r} {at}")
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "\n".join(texts)
