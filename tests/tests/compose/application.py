"""Counts visits in the database; an answer is their number and the name of the server."""

import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def count():
    with socket.create_connection(("database", 6379)) as database:
        database.sendall(b"INCR visits\r\n")
        reply = database.makefile("rb").readline()
    if not reply.startswith(b":"):
        raise ValueError(f"the database answers {reply!r}")
    return int(reply[1:])


class Visit(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = f"{count()} {socket.gethostname()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer(("", 8000), Visit).serve_forever()
