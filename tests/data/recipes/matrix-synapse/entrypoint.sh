#!/bin/sh
# Writes Synapse's configuration from the environment and the secrets, and starts it.
set -eu

cat > /data/homeserver.yaml <<YAML
server_name: "$SERVER_NAME"
pid_file: /tmp/homeserver.pid
report_stats: false
signing_key_path: /data/signing.key
media_store_path: /data/media
database:
  name: sqlite3
  args:
    database: /data/homeserver.db
listeners:
  - port: 8008
    type: http
    x_forwarded: true
    bind_addresses: ["0.0.0.0"]
    resources:
      - names: [client, federation]
  - port: 8448
    type: http
    tls: true
    bind_addresses: ["0.0.0.0"]
    resources:
      - names: [federation]
tls_certificate_path: /data/tls.crt
tls_private_key_path: /data/tls.key
registration_shared_secret: "$(cat /run/secrets/registration)"
macaroon_secret_key: "$(cat /run/secrets/macaroon)"
form_secret: "$(cat /run/secrets/form)"
trusted_key_servers: []
background_updates:
  sleep_enabled: false
limit_remote_rooms:
  enabled: true
  complexity: $COMPLEXITY_LIMIT
YAML

case "$SERVER_NAME" in
*:8448)
	# A name that is reached without a proxy has a certificate that nobody signed, and an address of a private network.
	cat >> /data/homeserver.yaml <<YAML
federation_verify_certificates: false
ip_range_blacklist: []
YAML
	;;
esac

[ -s /data/tls.key ] || python3 - "${SERVER_NAME%:*}" <<PYTHON
import datetime, secrets, sys
from pathlib import Path
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from signedjson.key import generate_signing_key, write_signing_keys

key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, sys.argv[1])])
now = datetime.datetime.now(datetime.timezone.utc)
made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
made = made.not_valid_after(now + datetime.timedelta(days=365))
made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(sys.argv[1])]), critical=False)
certificate = made.sign(key, hashes.SHA256())
plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
Path("/data/tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
with open("/data/signing.key", "w") as file:
    write_signing_keys(file, [generate_signing_key("a_" + secrets.token_hex(2))])
Path("/data/tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
PYTHON

exec python3 -m synapse.app.homeserver --config-path /data/homeserver.yaml
