"""The server's certificate authority and certificate: names, validity, files and keys."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloudmanager import config
from cloudmanager.protocol.errors import ServerError
from cm_server.net import certificate_creation, certificates


def make_handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> bytes:
    """Make a TLS handshake over a socket pair; return the certificate that the client got."""
    server_sock, client_sock = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(server_sock, server_side=True).close()
        except OSError:
            server_sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(client_sock, server_hostname=name) as sock:
            return sock.getpeercert(binary_form=True) or b""
    finally:
        thread.join()
        client_sock.close()


def trust(home: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=config.ca_file(home))


def test_server_is_verified_by_its_authority_for_one_name(tmp_path):
    context = certificates.load(tmp_path).context
    assert make_handshake(context, trust(tmp_path), "cloudmanager")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        make_handshake(context, trust(tmp_path), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        make_handshake(context, ssl.create_default_context(), "cloudmanager")


def test_each_server_has_its_own_authority(tmp_path):
    (tmp_path / "a").mkdir()
    own = certificates.load(tmp_path / "a")
    (tmp_path / "b").mkdir()
    other = certificates.load(tmp_path / "b")
    assert own.pin != other.pin
    with pytest.raises(ssl.SSLCertVerificationError):
        make_handshake(other.context, trust(tmp_path / "a"), "cloudmanager")


def test_certificates_are_created_once(tmp_path):
    first = certificates.load(tmp_path)
    assert certificates.load(tmp_path).ca == first.ca
    assert len(first.pin) == 22


def test_missing_file_replaces_both_certificates_before_any_board_is_enrolled(tmp_path):
    first = certificates.load(tmp_path)
    config.ca_file(tmp_path).unlink()
    second = certificates.load(tmp_path)
    assert second.ca != first.ca
    assert make_handshake(second.context, trust(tmp_path), "cloudmanager")


def test_certificates_are_valid_from_2000_and_never_expire(tmp_path):
    certificates.load(tmp_path)
    for name in ("ca.pem", "server.pem"):
        certificate = x509.load_pem_x509_certificate((tmp_path / name).read_bytes())
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        assert (start.year, start.month, start.day) == (2000, 1, 1)
        assert end == datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)


def test_keys_are_private_and_the_authoritys_is_not_stored(tmp_path):
    certificates.load(tmp_path)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys = [path.name for path in tmp_path.iterdir() if "PRIVATE KEY" in path.read_text()]
    assert keys == ["server.pem"]
    own = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    assert own.public_key() != ca.public_key()
    own.verify_directly_issued_by(ca)


def test_public_certificate_is_used_for_other_names(tmp_path):
    (tmp_path / "other").mkdir()
    public = certificates.load(tmp_path / "other")
    home = tmp_path / "home"
    home.mkdir()
    context = certificates.load(home, tmp_path / "other" / "server.pem").context
    no_check = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    no_check.check_hostname, no_check.verify_mode = False, ssl.CERT_NONE
    shown = make_handshake(public.context, no_check, None)
    assert make_handshake(context, trust(home), "cloudmanager") != shown
    assert make_handshake(context, no_check, "lab.example") == shown
    assert make_handshake(context, no_check, None) == shown


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("nonsense", "not PEM")],
    ids=["missing", "wrong"],
)
def test_invalid_certificate_is_refused_with_its_path(tmp_path, content, reason):
    path = tmp_path / "my.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ServerError, match=reason) as caught:
        certificates.load(tmp_path, path)
    assert str(path) in caught.value.reason


def test_old_tls_versions_are_refused(tmp_path):
    context = certificates.load(tmp_path).context
    old = trust(tmp_path)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        make_handshake(context, old, "cloudmanager")


def test_servers_of_one_fleet_share_the_first_ones_certificate(tmp_path: Path):
    shared: dict[str, bytes] = {}
    homes = [tmp_path / name for name in "ab"]
    for home in homes:
        home.mkdir()
        certificates.use_shared(home, shared.setdefault)
    first, second = (certificates.load(home) for home in homes)
    assert first.pin == second.pin
    assert (homes[0] / "server.pem").read_text() == (homes[1] / "server.pem").read_text()


def test_certificates_are_created_beside_the_start_of_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    monkeypatch.setattr(certificate_creation, "create_certificates", lambda: pytest.fail("here"))
    certificate_creation.start_creating()
    context = certificates.load(tmp_path).context
    assert make_handshake(context, trust(tmp_path), "cloudmanager")
    certificate_creation.start_creating()  # nothing is missing now
    assert certificate_creation._process is None


@pytest.mark.parametrize("program", ["import sys; sys.exit(1)", "print('{')", "print()"])
def test_server_creates_certificates_itself_if_the_process_fails(tmp_path, monkeypatch, program):
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    monkeypatch.setattr(certificate_creation, "_process", process)
    context = certificates.load(tmp_path).context
    assert make_handshake(context, trust(tmp_path), "cloudmanager")
    assert process.returncode is not None


def test_process_that_nobody_needs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("CM_HOME", str(tmp_path))
    certificate_creation.start_creating()
    process = certificate_creation._process
    assert process is not None
    certificate_creation.stop_creating()
    assert process.returncode is not None
    certificate_creation.stop_creating()
