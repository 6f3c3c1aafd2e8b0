"""Signs people in: discovery, authorization code, tokens with a signature that is checked, userinfo."""

import base64
import hashlib
import html
import http.server
import json
import os
import pathlib
import secrets
import sys
import time
import urllib.parse
import urllib.request

ISSUER, CLIENT = os.environ["SSO_ISSUER"], os.environ["SSO_CLIENT"]
SECRET = pathlib.Path("/run/secrets/sso_client_secret")
SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")  # how a signature begins that is of a SHA-256
asked, people = {}, {}


def get(url, data=None, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:
        return json.load(answer)


def decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def checked(token, keys, nonce):
    """The claims of a token, when it is signed by one of the keys, and for us."""
    head, claims, signature = token.split(".")
    key = next(key for key in keys if key["kid"] == json.loads(decoded(head))["kid"])
    n, e = (int.from_bytes(decoded(key[name]), "big") for name in ("n", "e"))
    size = (n.bit_length() + 7) // 8
    wanted = SHA256 + hashlib.sha256(f"{head}.{claims}".encode()).digest()
    padded = b"\0\1" + b"\xff" * (size - len(wanted) - 3) + b"\0" + wanted
    if pow(int.from_bytes(decoded(signature), "big"), e, n).to_bytes(size, "big") != padded:
        raise ValueError("the signature is wrong")
    said = json.loads(decoded(claims))
    if (said["iss"], said["aud"], said["nonce"]) != (ISSUER, CLIENT, nonce) or said["exp"] < time.time():
        raise ValueError("the token is not for this login")
    return said


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        cookie = self.headers.get("Cookie", "").partition("session=")[2].partition(";")[0]
        callback = f"{self.headers.get('X-Forwarded-Proto', 'http')}://{self.headers['Host']}/callback"
        try:
            if url.path == "/health":
                self.say(200, "well")
            elif url.path == "/callback":
                self.back(query, callback)
            elif cookie in people:
                self.say(200, f"<title>Home</title><h1>Welcome, {html.escape(people[cookie])}</h1>")
            else:
                self.lead(callback)
        except Exception as error:
            print(repr(error), flush=True)
            self.say(502, html.escape(repr(error)))

    def lead(self, callback):
        state, nonce = secrets.token_urlsafe(9), secrets.token_urlsafe(9)
        asked[state] = nonce
        query = {"response_type": "code", "scope": "openid", "client_id": CLIENT, "redirect_uri": callback}
        there = get(f"{ISSUER}/.well-known/openid-configuration")["authorization_endpoint"]
        self.say(302, "", Location=f"{there}?{urllib.parse.urlencode({**query, 'state': state, 'nonce': nonce})}")

    def back(self, query, callback):
        nonce = asked.pop(query["state"])
        provider = get(f"{ISSUER}/.well-known/openid-configuration")
        form = {"grant_type": "authorization_code", "code": query["code"], "redirect_uri": callback}
        form |= {"client_id": CLIENT, "client_secret": SECRET.read_text()}
        tokens = get(provider["token_endpoint"], urllib.parse.urlencode(form).encode())
        claims = checked(tokens["id_token"], get(provider["jwks_uri"])["keys"], nonce)
        person = get(provider["userinfo_endpoint"], Authorization=f"Bearer {tokens['access_token']}")
        if person["sub"] != claims["sub"]:
            raise ValueError("two people")
        session = secrets.token_urlsafe(16)
        people[session] = person["preferred_username"]
        self.say(302, "", **{"Location": "/", "Set-Cookie": f"session={session}; Secure; HttpOnly; Path=/"})

    def say(self, status, text, **headers):
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
