"""The server's own certificate authority, and the TLS that stands on it. No sockets here.

Made at the first start, kept in the server's folder: ``ca.pem`` is what boards and callers
verify the server by, for the one name ``cloudmanager``, since its address may change.
ECDSA P-256, no intermediates, valid from 2000 on (boards wake without a clock) without an
end (RFC 5280, 4.1.2.5): a wall of boards that all refuse their server on one day is worse
than a key of one's own that has to be changed by hand.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError
from cm_server.store import file_replacement

#: The one name that boards and callers check the server's certificate for.
SERVER_NAME = config.TLS_NAME
_ISSUER = "Cloudmanager CA"  # names are compared without regard to case (RFC 5280, 7.1)
_NOT_BEFORE = datetime(2000, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class Certificates(NamedTuple):
    """What a server shows, and what it is verified by.

    Attributes:
        ca: the authority's certificate, DER.
        context: the server's end of TLS.
    """

    ca: bytes
    context: ssl.SSLContext

    @property
    def pin(self) -> str:
        """Return the authority's fingerprint, as tokens carry it."""
        return pin_of(self.ca)


def pin_of(ca: bytes) -> str:
    """Return 128 bits of a certificate's SHA-256: a second one to match it is out of reach."""
    return urlsafe_b64encode(hashlib.sha256(ca).digest()[:16]).decode().rstrip("=")


def load(
    home: Path, cert: Path | None = None, key: Path | None = None, *, in_use: bool = False
) -> Certificates:
    """Return the certificates in ``home``, made where they are missing.

    Args:
        home: the server's folder.
        cert: a certificate (PEM, with its chain) to show to whoever asks for any other name
            than ``cloudmanager``: browsers, monitors. Boards go on with our own.
        key: its key, where it is not in the same file.
        in_use: whether boards know the authority; then one of the two files without the
            other is not replaced by new ones.

    Raises:
        ServerError: one of them cannot be read, or is none.
    """
    ca, own = config.ca_file(home), home / "server.pem"
    if in_use and ca.exists() is not own.exists():
        lost, there = (ca, own) if own.exists() else (own, ca)
        raise ServerError(
            f"{lost.name} is gone from {home}, and {there.name} is there, which boards know. "
            "`mbm server-restore` brings both back from a backup; delete both for new ones, "
            "and enrol the boards anew"
        )
    if not (ca.exists() and own.exists()):
        _write(home, _create_certificates())
    context = _tls_context(own)
    if cert is not None:
        public = _tls_context(cert, key)
        context.sni_callback = lambda sock, name, _: _select_certificate(sock, name, public)
    return Certificates(ssl.PEM_cert_to_DER_cert(ca.read_text()), context)


def use_shared(home: Path, put_if_absent: Callable[[str, bytes], bytes]) -> None:
    """Have the same certificates as the other servers of a fleet: boards trust one authority.

    Args:
        home: the server's folder.
        put_if_absent: takes a name and a value, and returns the value that was first there.
    """
    files = (config.ca_file(home), home / "server.pem")
    there = all(file.exists() for file in files)
    mine = [file.read_text() for file in files] if there else _create_certificates()
    shared = json.loads(put_if_absent("certificates", json.dumps(mine).encode()))
    if not there or shared != mine:
        _write(home, shared)


def _select_certificate(sock: Any, name: str | None, public: ssl.SSLContext) -> None:
    """Show the public certificate, unless our own is asked for."""
    if name != SERVER_NAME:
        sock.context = public


def _tls_context(cert: Path, key: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_NO_TICKET  # boards keep none; each would cost bytes and time
    context.num_tickets = 0
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise ServerError(f"the certificate {cert} cannot be used: {_load_error(error)}") from error
    return context


def _load_error(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "it and its key do not fit, or one of them is not PEM"
    return getattr(error, "strerror", None) or str(error)


def _write(home: Path, texts: Sequence[str]) -> None:
    """Write both files, or none of them: one of them alone is of no use to anybody.

    Args:
        home: the server's folder.
        texts: of ``ca.pem`` and of ``server.pem``.
    """
    names = (config.ca_file(home).name, "server.pem")
    with file_replacement.staging(home) as folder:
        for name, text in zip(names, texts, strict=True):
            config.write_private(folder / name, text)
        file_replacement.replace_all(home, folder, names, "change of certificates")


def _create_certificates() -> list[str]:
    """Return a new authority's certificate, and the server's with its key, both as PEM."""
    # Only at the first start: its import takes 50 ms.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ca_key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = _sign_certificate(_ISSUER, ca_key.public_key(), ca_key)
    own = _sign_certificate(SERVER_NAME, own_key.public_key(), ca_key)
    # The authority's key signs this once and is forgotten: what is not kept is not stolen.
    text = own.public_bytes(pem) + own_key.private_bytes(pem, *form)
    return [ca.public_bytes(pem).decode(), text.decode()]


def _sign_certificate(subject: str, key: Any, issuer_key: Any) -> Any:
    """Return a certificate of our authority (RFC 5280): its own, or the server's."""
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
