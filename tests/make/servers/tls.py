"""A scripted TLS server on loopback with a throw-away authority, and a resolver that only knows the
names it was given.
"""

import asyncio
import functools
import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ["images.test", "*.images.test", "other.test", "xn--exmple-cua.test", "localhost"]
IMAGE = b"\x89PNG" + bytes(range(256)) * 8


@functools.cache
def authority() -> tuple[str, ssl.SSLContext]:
    """A certificate authority's file, and a server's context with a certificate of it for NAMES."""
    folder, start = Path(tempfile.mkdtemp()), datetime.now(UTC) - timedelta(hours=1)

    def certificate(subject, key, issuer, signer, *extensions):
        name, by = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, issuer)
        )
        serial, end = x509.random_serial_number(), start + timedelta(days=1)
        made = x509.CertificateBuilder(by, name, key.public_key(), serial, start, end)
        for extension in extensions:
            made = made.add_extension(extension, critical=False)
        return made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES])
    (folder / "ca.pem").write_bytes(certificate("ca", ca, "ca", ca, constraints))
    leaf = certificate("leaf", key, "ca", ca, names)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "leaf.pem").write_bytes(leaf + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem")
    return str(folder / "ca.pem"), context


def answer(body: bytes = IMAGE, status: str = "200 OK", **headers: str) -> bytes:
    headers = {"Content_Length": str(len(body)), **headers}
    lines = "".join(
        f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items() if value
    )
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def redirect(place: str, **headers: str) -> bytes:
    return answer(b"", "302 Found", Location=place, **headers)


class Loopback:
    """A TLS server whose every answer is scripted: path → raw bytes, or a coroutine that writes
    them. Keeps what it was asked.
    """

    def __init__(self, routes, host: str = "127.0.0.1", *, tls: bool = True) -> None:
        self.routes, self.host, self.tls = routes, host, tls
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections, self.written, self.port, self.names = 0, 0, 0, []

    async def __aenter__(self):
        context = authority()[1] if self.tls else None
        if context:
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            received = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            head, *lines = received.strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await reader.readexactly(int(headers.get("Content-Length", 0)))
            self.requests.append((head, headers, body))
            script = self.routes[head.split()[1]] if isinstance(self.routes, dict) else self.routes
            if isinstance(script, bytes):
                writer.write(script)
                await writer.drain()
            else:
                await script(self, writer)
        except (OSError, asyncio.IncompleteReadError):
            return  # the guard hung up, as it should
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()


class Names:
    """A resolver of names: each question takes the next answer, the last one stays. Counts the
    questions.
    """

    def __init__(self, **answers) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked = []

    async def __call__(self, host, port):
        self.asked.append((host, port))
        given = self.answers.get(host)
        if given is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return given.pop(0) if len(given) > 1 else given[0]
