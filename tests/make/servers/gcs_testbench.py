"""Google's own emulator of Cloud Storage (github.com/googleapis/storage-testbench), served until
standard input ends; prints its port.

Run by the Python that has it, which is none of ours: it pins other versions of half of what
Touchstone uses. It takes multipart bodies whose lines end as RFC 2046 says; gcsfs ends them as
Cloud Storage takes them, too, so that they are written the long way here.
"""

import io
import os
import sys
import threading


def with_long_line_ends(application):
    def served(environ, start_response):
        if "multipart/related" in environ.get("CONTENT_TYPE", ""):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            boundary = environ["CONTENT_TYPE"].rpartition("boundary=")[2].strip('"').encode()
            if body.startswith(b"--" + boundary + b"\n"):
                _, facts, rest = body.split(b"--" + boundary + b"\n", 2)
                head, _, content = rest.partition(b"\n\n")
                content = content.removesuffix(b"\n--" + boundary + b"--")
                head = head.replace(b"\n", b"\r\n")
                parts = [facts.rstrip(b"\n").replace(b"\n\n", b"\r\n\r\n")]
                parts.append(head + b"\r\n\r\n" + content)
                line = b"--" + boundary
                body = b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--"
            environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
            environ["CONTENT_TYPE"] = f"multipart/related; boundary={boundary.decode()}"
        return application(environ, start_response)

    return served


def main():
    from testbench import rest_server
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, with_long_line_ends(rest_server._run()), threaded=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
