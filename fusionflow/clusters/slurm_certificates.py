"""Certificates for one cluster, as files that its jobs can read: ``python -m ... FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from distributed.security import Security

from fusionflow.cluster_options import TlsFiles
from fusionflow.errors import MissingExtraError


def write_certificates(folder: Path) -> TlsFiles:
    """Make a certificate that signs itself, and its key, for both sides.

    Parameters
    ----------
    folder : Path
        Takes ``ca.pem``, ``cert.pem`` and ``key.pem``, which only this user can read.

    Raises
    ------
    MissingExtraError
        If cryptography is not there.
    """
    try:
        made = Security.temporary()
    except ImportError as error:
        raise MissingExtraError(
            f"Certificates for a cluster of jobs need cryptography: {error}",
            "pip install 'fusionflow[slurm]'; or name your own (cluster.tls)",
        ) from error
    contents = {
        "ca.pem": made.tls_ca_file,
        "cert.pem": made.tls_worker_cert,
        "key.pem": made.tls_worker_key,
    }
    for name, content in contents.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(content)
    return TlsFiles(ca_file=folder / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")


def security_of_all_sides(files: TlsFiles) -> Security:
    """Return what scheduler, workers and clients use alike."""
    sides = {
        f"tls_{side}_{what}": str(getattr(files, what))
        for side in ("scheduler", "worker", "client")
        for what in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=str(files.ca_file), **sides)


if __name__ == "__main__":
    write_certificates(Path(sys.argv[1]))
