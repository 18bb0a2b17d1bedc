"""Who and what the editor's server refuses, and that it lives on: strangers, other sites, messages that are none."""

from __future__ import annotations

import json
import re
import resource
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from editor_client import DAB, SECRET, images, site
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from hkmap.editor.access import HEADERS, Access, keep, kept
from hkmap.editor.messages import MOST_BYTES, read_message
from hkmap.editor.server import STATIC
from hkmap.editor.session import EditSession
from hkmap.errors import HkmapError

HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that all of these tests share."""
    folder = tmp_path_factory.mktemp("served")
    with site(EditSession(images(folder), folder / "out"), ("ana", "ben", "eve é/.")) as found:
        yield found


# who


def test_a_link_becomes_a_cookie_and_its_token_leaves_the_address(served):
    for user in ("ana", "eve é/."):
        status, headers, _ = served.get(f"/?{served.access.query(user)}", user=None)
        assert (status, headers["Location"]) == (303, "/")
        cookie, *attributes = headers["Set-Cookie"].split("; ")
        assert {attribute.lower() for attribute in attributes} == {"httponly", "path=/", "samesite=lax"}
        status, _, body = served.get("/records.json", {"Cookie": f"theme=dark; {cookie}"}, user=None)
        assert (status, json.loads(body)["user"]) == (200, user)


@pytest.mark.parametrize("cookie", [
    "", "{name}=", "{name}=ana", "{name}=ana.", "{name}=ana.{ben}", "{name}=mallory.{ana}", "{name}=.{ana}",
    "x=ana.{ana}", "{name}=ana.{ana}0", "{name}=mallory.{mallory}", "{name}=ana.%E9", "{name}=%ff.%00",
])
def test_without_its_token_nobody_gets_anything(served, cookie):
    tokens = {user: served.access.token(user) for user in ("ana", "ben", "mallory")}      # mallory was here before
    headers = {"Cookie": cookie.format(name=served.access.cookie, **tokens)}
    for path in ("/", "/records.json", "/image/0", "/thumbnail/0", "/static/index.html", "/nothing"):
        status, _, body = served.get(path, headers, user=None)
        assert status == 403
        assert body == b"hkmap edit: no token came along; open the link that `hkmap edit` has printed.\n"
    with pytest.raises(InvalidStatus) as refused, served.page(Cookie=headers["Cookie"]):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("query", ["user=ana&token=", "user=ana&token=é", "token={ana}", "user=ben&token={ana}",
                                   "user=mallory&token={ana}", f"user=ana&token={quote(SECRET)}"])
def test_a_wrong_token_is_refused_even_beside_a_good_cookie(served, query):
    status, headers, body = served.get(f"/?{quote(query.format(ana=served.access.token('ana')), safe='=&')}")
    assert (status, headers["Set-Cookie"]) == (403, None)
    assert body.startswith(b"hkmap edit: the token is not that of this editor and person; open the link")


def test_the_secret_and_the_folder_make_the_token_and_the_cookie(tmp_path):
    here, there = (Access(SECRET, ("ana",), tmp_path / name, "localhost") for name in ("a", "b"))
    assert here.cookie != there.cookie
    assert here.token("ana") != Access("another secret of tests", ("ana",), tmp_path, "localhost").token("ana")
    assert SECRET not in here.query("ana")


def test_the_secret_is_kept_for_its_owner_alone(tmp_path):
    secret, port = kept(tmp_path)
    assert (len(secret) > 40, port) == (True, 0)
    keep(tmp_path, secret, 8123)
    file = tmp_path / ".editor.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert kept(tmp_path) == (secret, 8123)
    file.chmod(0o644)
    assert kept(tmp_path)[0] != secret
    for damaged in ("", "[1]", "{}", '{"secret": "x", "port": "x"}'):
        file.write_text(damaged)
        file.chmod(0o600)
        assert kept(tmp_path)[1] == 0
    file.unlink()
    (tmp_path / "elsewhere.json").write_text(json.dumps({"secret": secret, "port": 1}))
    (tmp_path / "elsewhere.json").chmod(0o600)
    file.symlink_to(tmp_path / "elsewhere.json")
    assert kept(tmp_path)[0] != secret


# from where


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1", 200), ("127.0.0.1:9", 200), ("localhost:8888", 200), ("LocalHost", 200), ("[::1]:80", 200),
    ("192.168.1.7:8000", 200), ("evil.example", 403), ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403),
    ("localhost.evil.example", 403), ("", 403), ("[", 403), ("127.0.0.1@evil.example", 403), (HOSTILE, 403),
])
def test_only_names_of_this_machine_are_answered(served, host, status):
    assert served.get("/records.json", {"Host": host})[0] == status


def test_a_host_that_was_asked_for_is_known(tmp_path):
    access = Access(SECRET, ("ana",), tmp_path, "lab.example")
    known = ("lab.example:8000", f"{socket.gethostname()}:1", "10.0.0.1")
    assert [access.knows(host) for host in (*known, "evil.example")] == [True, True, True, False]


@pytest.mark.parametrize("origin", [
    "http://evil.example", "null", "https://{0}", "http://127.0.0.1:1", "http://{0}.x", "",
])
def test_pages_of_other_sites_are_refused(served, origin):
    own = {"Origin": origin.format(served.address)}
    assert served.get("/records.json", own)[0] == 403
    with pytest.raises(InvalidStatus) as refused, served.page(**own):
        pass
    assert refused.value.response.status_code == 403
    assert served.get("/records.json", {"Origin": f"http://{served.address}"})[0] == 200


def test_a_socket_without_an_origin_is_no_browsers_and_refused(served):
    request = (
        f"GET /live HTTP/1.1\r\nHost: {served.address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nCookie: {served.cookie()}\r\n"
    )
    for origin, status in (("", b"403"), (f"Origin: http://{served.address}\r\n", b"101")):
        with raw(served) as connection:
            connection.sendall(f"{request}{origin}\r\n".encode())
            assert connection.recv(100).split()[1] == status


# what


def test_every_response_keeps_the_page_to_itself(served):
    Path(served.editor.session.records[2]["image"]).write_bytes(b"none")
    asked = {
        200: ("/", "/records.json", "/image/0", "/thumbnail/0", "/static/index.html"), 404: ("/image/9", "/x"),
        422: ("/image/2",), 403: ("/?user=ana&token=1",),
    }
    for status, paths in asked.items():
        for path in paths:
            found, headers, _ = served.get(path)
            assert found == status, path
            assert {name: headers[name] for name in HEADERS} == HEADERS
            assert "no-store" in headers["Cache-Control"] or "no-cache" in headers["Cache-Control"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert HEADERS["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "X"])
def test_only_get_is_answered(served, method):
    assert served.get("/records.json", method=method)[0] == 405


def test_the_page_has_no_inline_script_or_style():
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\ssrc=)", page) == []
    assert re.findall(r"\s(?:style|on[a-z]+)\s*=", page) == []
    assert "<style" not in page
    for script in STATIC.glob("*.js"):
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text()) == []


@pytest.mark.parametrize("path", [
    "/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd", "/static/",
    "/static/%2fetc%2fpasswd", "/static/index.html%00", "/../../etc/passwd", "/image/../../etc/passwd", "/image/-1",
    "/image/%2e%2e%2fhuman.npy", "/image/1e0", "/image/%C2%B2", "/image/0x0", "/image/" + "9" * 5000, "/image/",
    "/thumbnail/../image", "/static/index.html/..", "/.editor.json", "/out/.editor.json", "/static/C:%5Cx",
])
def test_no_path_of_a_client_reaches_the_disk(served, path):
    status, _, body = served.get(path)
    assert status == 404
    assert len(body) < 100


def test_ids_and_names_are_no_paths(tmp_path):
    (record,) = images(tmp_path, 1)
    users = ("../../ana", "/tmp/ben", HOSTILE)
    before = set(tmp_path.rglob("*"))
    session = EditSession([{**record, "id": "../../../etc/x"}, {**record, "id": HOSTILE, "class": HOSTILE}],
                          tmp_path / "deep" / "out")
    with site(session, users) as served:
        for user in users:
            cookie = f"{served.access.cookie}={quote(user, safe='')}.{served.access.token(user)}"
            with served.page(Cookie=cookie) as page:
                assert page.ask("open", "opened", n=1)["class"] == HOSTILE
                for number in (0, 1):
                    page.ask("paint", "saved", n=number, revision=0, stroke=DAB)
                    page.ask("mark", "saved", n=number, revision=1, state="confirmed")
        status, headers, body = served.get("/records.json", {"Cookie": cookie}, user=None)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert json.loads(body)["records"][1]["id"] == HOSTILE
    assert [record["edited_by"] for record in session.records_out()] == [sorted(users)] * 2
    made = set(tmp_path.rglob("*")) - before
    assert {path.relative_to(tmp_path).parts[0] for path in made} == {"deep"}
    assert {path.parts[len(tmp_path.parts) + 1] for path in made if path.is_file()} == {"out"}


# messages


@pytest.mark.parametrize("message", [
    [], 1, None, "open", {}, {"do": None}, {"do": []}, {"do": "x"}, {"do": "__init__"}, {"do": "open"},
    {"do": "open", "n": 3}, {"do": "open", "n": -1}, {"do": "open", "n": True}, {"do": "open", "n": 0.0},
    {"do": "open", "n": "0"}, {"do": "open", "n": 10**400}, {"do": "open", "n": [0]}, {"do": "undo", "n": 0},
    {"do": "undo", "n": 0, "revision": -1}, {"do": "undo", "n": 0, "revision": None}, {"do": "paint", "n": 0},
    {"do": "paint", "n": 0, "revision": 0}, {"do": "paint", "n": 0, "revision": 0, "stroke": {}},
    {"do": "paint", "n": 0, "revision": 0, "stroke": {**DAB, "tool": "rm"}},
    {"do": "paint", "n": 0, "revision": 0, "stroke": {**DAB, "points": [[1, 1e9]]}},
    {"do": "paint", "n": 0, "revision": 0, "stroke": {**DAB, "points": {}}},
    {"do": "paint", "n": 0, "revision": 0, "stroke": {**DAB, "radius": "6"}},
    {"do": "paint", "n": 0, "revision": 0, "stroke": {**DAB, "path": "/etc/passwd"}},
    {"do": "draw", "n": 0, "tick": 0}, {"do": "draw", "n": 0, "points": [[1, 1]]},
    {"do": "draw", "n": 0, "tick": 0, "points": [[1]]}, {"do": "draw", "n": 0, "tick": 0, "points": [["1", 1]]},
    {"do": "draw", "n": 0, "tick": 0, "stroke": {"tool": "invert"}},
    {"do": "draw", "n": 0, "tick": 0, "stroke": {"tool": "add", "points": [[0, 0], [1, 0], [0, 1]], "outline": True}},
    {"do": "start", "n": 0, "revision": 0, "start": "certainty"}, {"do": "start", "n": 0, "revision": 0, "start": []},
    {"do": "mark", "n": 0, "revision": 0, "state": "untouched"}, {"do": "mark", "n": 0, "revision": 0, "state": {}},
])
def test_a_message_that_is_none_is_told_in_a_sentence(message):
    with pytest.raises(HkmapError, match=r"^(the (message|stroke)|tool 'rm' is unknown)") as told:
        read_message(json.dumps(message), 3)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("text", ["", "x", "{", '{"do": NaN}', "[" * 100_000, "9" * 5000])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        read_message(text, 3)


def test_bad_messages_end_at_most_their_own_page(served):
    """Of the message that is too large only the beginning is sent, which says so: what is refused while more of it is
    under way may end in a reset, before the reason is read.
    """
    large = b"\x81\xff" + struct.pack("!Q", MOST_BYTES + 1) + b"mask"
    with served.page() as steady:
        for sent, code in (("no JSON", 1008), (b"\x00\x01", 1008), (large, 1009)):
            with served.page() as page:
                page.socket.socket.sendall(sent) if sent is large else page.socket.send(sent)
                with pytest.raises(ConnectionClosedError) as closed:
                    page.hear("opened")
                assert closed.value.rcvd.code == code
        trouble = steady.ask("delete", "trouble")
        assert (trouble["n"], trouble["what"]) == (None, "message")
        assert steady.ask("open", "opened", n=0)["revision"] == 0


def test_a_page_that_is_gone_in_the_middle_of_it_all_is_no_fault(served, caplog):
    for heard in (0, 1, 20) * 2:
        with served.page() as page:
            for _ in range(50):
                page.say("open", n=0)
            for _ in range(heard):
                page.hear("opened")
            reset = page.socket.socket
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.close()
    with served.page() as page:
        for _ in range(10_000):
            page.ask("open", "opened", n=0)     # a turn of the server, which may see that a page is gone
            if len(served.editor.connections) == 1:
                break
        assert len(served.editor.connections) == 1
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


# crowds


def raw(served):
    host, port = served.address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_a_thousand_idle_connections_and_200_idle_pages_keep_nobody_from_painting(served):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 3000:
        pytest.skip("fewer than 3,000 files may be open, and both ends of 1,200 connections are in this process")
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(raw(served))
        for _ in range(200):
            stack.enter_context(served.page("ben"))
        with served.page() as page:
            page.ask("open", "opened", n=0)
            assert page.ask("paint", "saved", n=0, revision=0, stroke=DAB)["revision"] == 1
        assert served.get("/image/0")[0] == 200


def test_a_connection_that_asks_for_nothing_is_closed_and_a_page_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("hkmap.editor.serving.PATIENCE", 0.3)
    with site(EditSession(images(tmp_path), tmp_path / "out")) as served, served.page() as page:
        with raw(served) as silent, raw(served) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: 127")
            assert silent.recv(1) == slow.recv(1) == b""
        assert page.ask("open", "opened", n=0)["n"] == 0


@pytest.mark.parametrize("request_line", [
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET /\r\n\r\n",
    b"GET \xff HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
    b"GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n",
])
def test_what_is_no_request_of_http_ends_its_own_connection_alone(served, request_line):
    with raw(served) as connection:
        connection.sendall(request_line)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1000)
    assert answer == b"" or answer.split()[1][:1] == b"4"
    assert served.get("/records.json")[0] == 200
