"""``sslscan`` tries every protocol and cipher that it knows on our listener."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import trio
import trustme

import sp

pytestmark = pytest.mark.needs("sslscan")


@pytest.mark.parametrize("key_type", list(trustme.KeyType), ids=lambda key_type: key_type.name)
async def test_no_protocol_and_no_cipher_that_is_weak_is_accepted(key_type: trustme.KeyType, tmp_path: Path) -> None:
    issued = trustme.CA(key_type=key_type).issue_cert("127.0.0.1", key_type=key_type)
    report = tmp_path / "report.xml"
    server = sp.TLSServerConfig(certificate=issued.private_key_and_cert_chain_pem.bytes())
    async with sp.Rep0(listen="tls+tcp://127.0.0.1:0", tls=server) as ours:
        where = ours.url.removeprefix("tls+tcp://")
        options = (f"--xml={report}", "--no-heartbleed", "--no-groups", "--no-fallback", "--no-compression")
        await trio.run_process(["sslscan", *options, where], capture_stdout=True, capture_stderr=True)
        assert not ours.pipes
    found = ElementTree.fromstring(report.read_bytes())
    enabled = {f"{one.get('type')} {one.get('version')}" for one in found.iter("protocol") if one.get("enabled") == "1"}
    assert enabled == {"tls 1.2", "tls 1.3"}
    ciphers = {(one.get("sslversion"), str(one.get("cipher")), one.get("status")) for one in found.iter("cipher")}
    kind = "RSA" if key_type is trustme.KeyType.RSA else "ECDSA"
    suites = ("AES256-GCM-SHA384", "AES128-GCM-SHA256", "CHACHA20-POLY1305")
    # All of them are ephemeral and authenticated: with RSA key exchange the name would be
    # AES256-GCM-SHA384 alone, and with CBC it would have no GCM.
    assert {name for version, name, _ in ciphers if version == "TLSv1.2"} == {f"ECDHE-{kind}-{suite}" for suite in suites}
    assert all(name.startswith("TLS_") for version, name, _ in ciphers if version == "TLSv1.3")
    assert {name for _, name, status in ciphers if status == "preferred"} == {f"ECDHE-{kind}-AES256-GCM-SHA384", "TLS_AES_256_GCM_SHA384"}
    assert [one.get("supported") for one in found.iter("renegotiation")] == ["0"]
