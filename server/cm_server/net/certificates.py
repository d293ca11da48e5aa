"""The server's own certificate authority, and TLS contexts with its certificate. No sockets here.

The certificates are created at the first start and kept in the server's folder. Boards and callers
verify the server with ``ca.pem``, always for the name ``cloudmanager``, since the server's address
may change. The keys are ECDSA P-256, and there are no intermediate certificates. The certificates
are valid from 2000 on, because boards start without a clock, and never expire (RFC 5280, 4.1.2.5):
otherwise, all boards would refuse their server from the same day on. To replace a key, delete
the files and enrol the boards again.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError
from cm_server.store import file_replacement

from .certificate_creation import take_certificates

#: The one name that boards and callers check the server's certificate for.
SERVER_NAME = config.TLS_NAME


class Certificates(NamedTuple):
    """A server's certificate authority and its TLS context.

    Attributes:
        ca: the authority's certificate, DER.
        context: for the server's side of TLS.
    """

    ca: bytes
    context: ssl.SSLContext

    @property
    def pin(self) -> str:
        """Return the authority's fingerprint, as it is appended to tokens."""
        return pin_of(self.ca)


def pin_of(ca: bytes) -> str:
    """Return the first 128 bits of a certificate's SHA-256, in URL-safe base64.

    That is enough: an attacker would need a second preimage, not a collision.
    """
    return urlsafe_b64encode(hashlib.sha256(ca).digest()[:16]).decode().rstrip("=")


def load(
    home: Path, cert: Path | None = None, key: Path | None = None, *, in_use: bool = False
) -> Certificates:
    """Return the certificates in ``home``; create them if they do not exist.

    Args:
        home: the server's folder.
        cert: a certificate (PEM, with its chain) for clients that ask for another name than
            ``cloudmanager``, such as browsers and monitoring. Boards still get the server's own.
        key: the certificate's private key, if it is not in the same file.
        in_use: whether boards are enrolled; then, if only one of the two files exists, no new
            certificates are created.

    Raises:
        ServerError: a certificate cannot be read, is not a certificate, or one file is missing.
    """
    ca, own = config.ca_file(home), home / "server.pem"
    if in_use:
        _check_both_or_none(ca, own)
    if not (ca.exists() and own.exists()):
        _write(home, take_certificates())
    context = _tls_context(own)
    if cert is not None:
        public = _tls_context(cert, key)
        context.sni_callback = lambda sock, name, _: _select_certificate(sock, name, public)
    return Certificates(ssl.PEM_cert_to_DER_cert(ca.read_text()), context)


def _check_both_or_none(ca: Path, own: Path) -> None:
    """Raise ServerError if one of the two files is missing: new ones would lock out the boards."""
    if ca.exists() is own.exists():
        return
    missing, present = (ca, own) if own.exists() else (own, ca)
    raise ServerError(
        f"{missing.name} is missing in {ca.parent}, but {present.name} exists, and boards are "
        "enrolled with both. `mbm server-restore` restores them from a backup. To create new "
        "certificates, delete both files and enrol the boards again"
    )


def use_shared(home: Path, put_if_absent: Callable[[str, bytes], bytes]) -> None:
    """Use the same certificates as the other servers of a fleet: boards trust one authority.

    Args:
        home: the server's folder.
        put_if_absent: stores a value under a name unless there is one; returns the stored value.
    """
    files = (config.ca_file(home), home / "server.pem")
    exist = all(file.exists() for file in files)
    own = [file.read_text() for file in files] if exist else take_certificates()
    shared = json.loads(put_if_absent("certificates", json.dumps(own).encode()))
    if not exist or shared != own:
        _write(home, shared)


def _select_certificate(sock: Any, name: str | None, public: ssl.SSLContext) -> None:
    """Use the public certificate unless the client asks for the server's own name (SNI)."""
    if name != SERVER_NAME:
        sock.context = public


def _tls_context(cert: Path, key: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_NO_TICKET  # boards store none; each costs bytes and time
    context.num_tickets = 0
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise ServerError(f"the certificate {cert} cannot be used: {_load_error(error)}") from error
    return context


def _load_error(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "it does not match its key, or one of them is not PEM"
    return getattr(error, "strerror", None) or str(error)


def _write(home: Path, texts: Sequence[str]) -> None:
    """Write both files or none, also if the process is killed meanwhile.

    Args:
        home: the server's folder.
        texts: the contents of ``ca.pem`` and ``server.pem``.
    """
    names = (config.ca_file(home).name, "server.pem")
    with file_replacement.staging(home) as folder:
        for name, text in zip(names, texts, strict=True):
            config.write_private(folder / name, text)
        _replace_files(home, folder, names)


def _replace_files(home: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files from a staging folder to ``home``: all of them, even across a crash."""
    file_replacement.replace_all(home, folder, names, "change of certificates")
