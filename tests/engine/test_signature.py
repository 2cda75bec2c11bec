"""Signed bundles: what the key has not signed is refused before it is parsed."""

import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from engine.bundle import MANIFEST, open_bundle
from engine.errors import BundleError, ConfigurationError
from engine.signature import SIGNATURE, sign
from tests.tiny_bundle import tiny_bundle


def write(folder, name, key, encryption=None):
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def keys(tmp_path):
    return write(tmp_path, "signing", Ed25519PrivateKey.generate())


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "bundle").path


def signed(bundle, private):
    (bundle / SIGNATURE).write_bytes(sign((bundle / MANIFEST).read_bytes(), private))


def test_a_signed_bundle_opens_as_any_other(bundle, keys):
    private, public = keys
    signed(bundle, private)
    assert open_bundle(bundle, signed_by=public).id == open_bundle(bundle).id


def test_what_the_key_has_not_signed_is_refused(bundle, keys, tmp_path):
    private, public = keys
    with pytest.raises(BundleError, match=r"manifest\.sig: is missing; sign it with: agent sign"):
        open_bundle(bundle, signed_by=public)
    signed(bundle, private)
    _, stranger = write(tmp_path, "stranger", Ed25519PrivateKey.generate())
    with pytest.raises(BundleError, match="is not a signature of this manifest by the key"):
        open_bundle(bundle, signed_by=stranger)
    whole = (bundle / SIGNATURE).read_bytes()
    for changed in (b"", whole[:-1], whole + b"\0", bytes([whole[0] ^ 1]) + whole[1:]):
        (bundle / SIGNATURE).write_bytes(changed)
        with pytest.raises(BundleError, match="is not a signature"):
            open_bundle(bundle, signed_by=public)


def test_a_changed_manifest_is_refused_before_it_is_parsed(bundle, keys):
    private, public = keys
    signed(bundle, private)
    (bundle / MANIFEST).write_bytes(b"not even JSON")
    with pytest.raises(BundleError, match="is not a signature"):
        open_bundle(bundle, signed_by=public)


def test_a_changed_network_is_refused_by_its_hash(bundle, keys):
    private, public = keys
    signed(bundle, private)
    with (bundle / "network.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="does not have the hash"):
        open_bundle(bundle, signed_by=public)


def test_keys_that_cannot_be_used_are_named(bundle, keys, tmp_path):
    private, public = keys
    elliptic = write(tmp_path, "elliptic", generate_private_key(SECP256R1()))
    locked, _ = write(
        tmp_path, "locked", Ed25519PrivateKey.generate(), BestAvailableEncryption(b"x")
    )
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_bytes(b"-----BEGIN")
    for key in (private, elliptic[1], rubbish):
        with pytest.raises(
            ConfigurationError, match=r"bundle\.require_signature: .*no Ed25519 public key"
        ):
            open_bundle(bundle, signed_by=key)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_bundle(bundle, signed_by=tmp_path / "absent.pem")
    for key, reason in [
        (public, "no Ed25519 private key"),
        (elliptic[0], "no Ed25519 private key"),
        (locked, "is encrypted"),
    ]:
        with pytest.raises(ConfigurationError, match=f"--key: .*{reason}"):
            sign(b"", key)


def test_without_the_package_one_sentence_says_what_to_install(bundle, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(
        ConfigurationError, match=r"needs the package cryptography; pip install '\."
    ):
        open_bundle(bundle, signed_by=keys[1])
    assert open_bundle(bundle)


def test_the_commands(bundle, keys):
    private, public = keys

    code = "import sys; from agent.cli import main; main()"

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    unsigned = run("verify", "--bundle", bundle, "--key", public)
    assert unsigned.returncode == 1
    assert "is missing; sign it with" in unsigned.stderr
    assert run("sign", "--bundle", bundle, "--key", public).returncode == 2
    made = run("sign", "--bundle", bundle, "--key", private, "--json")
    assert made.returncode == 0, made.stderr
    found = run("verify", "--bundle", bundle, "--key", public)
    assert found.returncode == 0, found.stderr
    assert open_bundle(bundle).id in found.stdout


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_a_signature_or_a_key_that_is_no_file_is_not_waited_for(bundle, keys, tmp_path, kind):
    private, public = keys
    signed(bundle, private)
    odd = tmp_path / "odd"
    os.mkfifo(odd) if kind == "a pipe" else odd.symlink_to("/dev/zero")
    with pytest.raises(ConfigurationError, match="it is not a regular file"):
        open_bundle(bundle, signed_by=odd)
    odd.rename(bundle / SIGNATURE)
    with pytest.raises(BundleError, match=r"manifest\.sig: cannot be read \(it is not a regular"):
        open_bundle(bundle, signed_by=public)
