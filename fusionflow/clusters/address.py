"""A scheduler that is there: where it is, and whether what is sent to it is safe on the way."""

from __future__ import annotations

import ipaddress
import json
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from distributed.security import Security

from fusionflow.cluster_options import ClusterOptions, TlsFiles
from fusionflow.errors import ClusterError, ConfigurationError
from fusionflow.untrusted import one_line

logger = logging.getLogger(__name__)

#: Seconds between two looks for a scheduler's file.
_LOOK = 0.2
_ENCRYPTED = ("tls", "wss", "inproc")


def address_of(options: ClusterOptions, on_wait: Callable[[], object]) -> str:
    """Return where the scheduler is, waiting for its file if that is what names it.

    Parameters
    ----------
    options : ClusterOptions
        Where.
    on_wait : callable
        Called while there is no file yet; what it raises ends the waiting.

    Raises
    ------
    ClusterError
        If the file does not come in time, or is not a scheduler's.
    ConfigurationError
        If the scheduler is on another machine, without TLS, and that is not allowed.
    """
    if options.scheduler_file is not None:
        address = _address_in(options.scheduler_file, options.patience, on_wait)
    else:
        address = str(options.address)
    _check_address(address, options)
    return address


def security_of(options: ClusterOptions) -> Security | None:
    """Return the certificates that are to be used, or None for those of Dask's configuration.

    Raises
    ------
    ConfigurationError
        If a file of them is not there, or they are no certificates.
    """
    if options.tls is None:
        return None
    for name in TlsFiles.model_fields:
        path: Path = getattr(options.tls, name)
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"cluster.tls.{name}: cannot read {path}: {error.strerror or error}",
                "Name a file in PEM that this user may read",
            ) from error
    security = Security(
        require_encryption=True,
        tls_ca_file=str(options.tls.ca_file),
        tls_client_cert=str(options.tls.cert),
        tls_client_key=str(options.tls.key),
    )
    try:
        security.get_connection_args("client")  # reads them
    except ssl.SSLError as error:
        files = ", ".join(str(getattr(options.tls, name)) for name in TlsFiles.model_fields)
        raise ConfigurationError(
            f"cluster.tls: {files} are no authority, certificate and its key in PEM: "
            f"{one_line(str(error))}",
            "Check with: openssl verify -CAfile CA_FILE CERT",
        ) from error
    return security


def _address_in(path: Path, patience: float, on_wait: Callable[[], object]) -> str:
    """Return the address that a scheduler wrote into a file, once it has.

    Raises
    ------
    ClusterError
        If it has not in time.
    """
    begun = time.monotonic()
    told = False
    while True:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["address"])
        except OSError as error:
            why = error.strerror or str(error)
        except (ValueError, KeyError, TypeError) as error:  # perhaps it is being written
            why = f"it is no scheduler's file ({one_line(str(error))})"
        if time.monotonic() - begun > patience:
            raise ClusterError(
                f"No scheduler's address in {path} within {patience:g} s: {why}",
                f"Start one: dask scheduler --scheduler-file {path}; or wait longer (--patience)",
            )
        if not told:
            logger.warning("Waiting up to %.0f s for a scheduler to write %s", patience, path)
            told = True
        on_wait()
        time.sleep(min(_LOOK, patience))


def _check_address(address: str, options: ClusterOptions) -> None:
    """Refuse to talk in the clear with a scheduler on another machine, unless that is asked for.

    Raises
    ------
    ConfigurationError
        If it would.
    """
    protocol, _, rest = address.rpartition("://")
    if protocol in _ENCRYPTED:
        return
    if options.tls is not None:
        raise ConfigurationError(
            f"cluster.tls names certificates, and the scheduler at {address} talks without them",
            "Start it with TLS and use tls://HOST:PORT, or leave cluster.tls out",
        )
    host = rest.rpartition(":")[0].strip("[]")
    if _is_loopback(host):
        return
    if not options.allow_plain_tcp:
        raise ConfigurationError(
            f"The scheduler at {address} is on another machine, without TLS (plain TCP): anybody "
            "on the network between can read the images and run code on both sides",
            "Start it with TLS and use tls://HOST:PORT, or, in a network that you trust, give "
            "--allow-plain-tcp (cluster.allow_plain_tcp: true)",
        )
    logger.warning("%s is reached without TLS: images travel in the clear", address)


def _is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own and nobody else's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
