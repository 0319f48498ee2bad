"""A server on loopback that answers as Weights & Biases does, as far as saving a view needs it."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VIEWER = {"id": "u1", "username": "me", "entity": "mine", "email": "me@example.org", "flags": "{}", "admin": False}
VIEWER |= {"teams": {"edges": []}, "apiKeys": {"edges": []}, "organizations": [], "name": "me", "deletedAt": None}


def reply(query: str, variables: dict) -> dict:
    if "upsertView" in query:
        view = {"id": "dmlldzox", "name": variables["name"], "displayName": variables["displayName"]}
        view |= {"description": variables["description"], "spec": variables["spec"], "type": variables["type"]}
        view |= {"project": {"name": variables["projectName"], "entityName": variables["entityName"], "id": "p1"}}
        return {"upsertView": {"view": view, "inserted": True}}
    project = {
        "id": "p1",
        "internalId": "cDE6",
        "name": "dlm",
        "entityName": "mine",
        "createdAt": "2026-01-01T00:00:00",
    }
    project |= {"isBenchmark": False, "user": VIEWER}
    found = {"viewer": VIEWER, "project": project, "model": project, "serverInfo": {"cliVersionInfo": None}}
    pages = {"hasNextPage": False, "endCursor": None}
    return found | {"models": {"edges": [{"node": project, "cursor": "1"}], "pageInfo": pages}}


@contextmanager
def serving():
    """The address of a server, and the list of the variables of every view that was saved."""
    saved = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = {}
            if self.path == "/graphql":
                request = json.loads(body)
                variables = request.get("variables") or {}
                if "upsertView" in request["query"]:
                    saved.append(variables)
                answer = {"data": reply(request["query"], variables)}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", saved
    finally:
        server.shutdown()
