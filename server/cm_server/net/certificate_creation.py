"""Create a server's certificates at its first start.

The library takes as long to import as a third of all that a server does until it listens. So
``python -m cm_server`` starts this module as a process of its own, if the files are missing, and
imports its own modules meanwhile. It prints the certificates, which are secret: to a pipe.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from cloudmanager import config

_ISSUER = "Cloudmanager CA"  # names are compared without regard to case (RFC 5280, 7.1)
_NOT_BEFORE = datetime(2000, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_SECONDS = 10.0  # of the process; then the server creates them itself
#: The process of this server's start; None without one.
_process: subprocess.Popen[bytes] | None = None


def start_creating() -> None:
    """Start to create certificates in another process, if this server's folder has none."""
    global _process
    home = config.home_folder()
    if not config.ca_file(home).exists() and not (home / "server.pem").exists():
        _process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


def stop_creating() -> None:
    """End the process of ``start_creating``, if nobody needed it."""
    global _process
    process, _process = _process, None
    if process is not None:
        process.kill()
        process.communicate()


def take_certificates() -> list[str]:
    """Return a new authority's certificate, and the server's certificate with its key, as PEM."""
    global _process
    process, _process = _process, None
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            output, _ = process.communicate(timeout=_SECONDS)
            created = json.loads(output)
            return [str(text) for text in created]
        process.kill()
        process.communicate()
    return create_certificates()


def create_certificates() -> list[str]:
    """Return a new authority's certificate, and the server's certificate with its key, as PEM."""
    # Here: the server imports this module at each start.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ca_key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = _sign_certificate(_ISSUER, ca_key.public_key(), ca_key)
    own = _sign_certificate(config.TLS_NAME, own_key.public_key(), ca_key)
    # The authority's private key signs two certificates and is never stored: it cannot be stolen.
    text = own.public_bytes(pem) + own_key.private_bytes(pem, *form)
    return [ca.public_bytes(pem).decode(), text.decode()]


def _sign_certificate(subject: str, key: Any, issuer_key: Any) -> Any:
    """Return a certificate signed by the authority (RFC 5280): its own, or the server's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    is_ca = subject == _ISSUER
    subject_name, issuer_name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in (subject, _ISSUER)
    )
    builder = (
        x509.CertificateBuilder(issuer_name, subject_name, key, x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
    )
    if not is_ca:
        names = x509.SubjectAlternativeName([x509.DNSName(subject)])
        usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(names, critical=False).add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(create_certificates()))
