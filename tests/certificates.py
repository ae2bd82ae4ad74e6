"""Certificates that a test made, as the files that a person names in YAML."""

from distributed.security import Security


def write_certificates(folder):
    """Write an authority, a certificate that it signed and its key; return the files by option."""
    folder.mkdir(parents=True)
    made = Security.temporary()
    files = {}
    for name, content in (
        ("ca_file", made.tls_ca_file),
        ("cert", made.tls_client_cert),
        ("key", made.tls_client_key),
    ):
        files[name] = folder / f"{name}.pem"
        files[name].write_text(content)
    return files


def dask_options(files):
    """Return how ``dask scheduler`` and ``dask worker`` are told of them."""
    return [
        "--tls-ca-file", str(files["ca_file"]), "--tls-cert", str(files["cert"]),
        "--tls-key", str(files["key"]),
    ]  # fmt: skip


def yaml_of(files):
    """Return the options of a run that name them."""
    return "cluster:\n  tls:\n" + "".join(f"    {name}: {path}\n" for name, path in files.items())
