"""Request lines and headers, through both lanes: methods, paths, versions, hosts, keys, and what is no HTTP at all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.lanes.conftest import End, Lanes

pytestmark = pytest.mark.e2e

TX = b'{"event_id":"head-1","ts":1750000000000,"amount":1299,"currency":"EUR","card_id":"c1","merchant_id":"m1"}'
KEY = b"Authorization: Bearer {admin}"
Row = tuple[bytes, Sequence[int] | None, "End"]


def request(line: bytes, *headers: bytes, body: bytes = TX) -> bytes:
    """A raw request: request line, headers, the length of the body, the body."""
    return b"\r\n".join([line, *headers, b"Content-Length: %d" % len(body), b"", body])


def score(*headers: bytes, line: bytes = b"POST /v1/score HTTP/1.1", body: bytes = TX) -> bytes:
    """A request that is valid but for what is given."""
    return request(line, b"Host: x", KEY, *headers, body=body)


def get(line: bytes, *headers: bytes) -> bytes:
    """A request without a body."""
    return b"\r\n".join([line, b"Host: x", KEY, *headers, b"", b""])


def to(target: bytes) -> bytes:
    """A valid transaction, sent to `target`."""
    return score(line=b"POST " + target + b" HTTP/1.1")


PATHS: dict[str, Row] = {
    "score": (score(), [200], "open"),
    "batch": (score(line=b"POST /v1/score/batch HTTP/1.1", body=b"[" + TX + b"]"), [200], "open"),
    "stream": (score(line=b"POST /v1/score/stream HTTP/1.1", body=TX + b"\n"), None, "any"),
    "query, empty": (to(b"/v1/score?"), [200], "open"),
    "query commit=false": (to(b"/v1/score?commit=false"), [200], "open"),
    "query commit=1": (to(b"/v1/score?commit=1"), [200], "open"),
    "query explain": (to(b"/v1/score?explain=1"), [200], "open"),
    "query trace": (to(b"/v1/score?commit=0&trace=1"), [200], "open"),
    "query all": (to(b"/v1/score?trace=true&explain=true&commit=false"), [200], "open"),
    "query unknown": (to(b"/v1/score?comit=false"), [422], "open"),
    "query twice": (to(b"/v1/score?commit=false&commit=false"), [422], "open"),
    "query bad value": (to(b"/v1/score?commit=maybe"), [422], "open"),
    "query without value": (to(b"/v1/score?commit"), [422], "open"),
    "query empty value": (to(b"/v1/score?commit="), [422], "open"),
    "query percent-encoded name": (to(b"/v1/score?c%6fmmit=false"), [200], "open"),
    "query percent-encoded value": (to(b"/v1/score?commit=%66alse"), [200], "open"),
    "query bad percent": (to(b"/v1/score?commit=%zz"), [422], "open"),
    "query raw byte": (to(b"/v1/score?commit=\xff"), [400], "closed"),
    "query bad UTF-8": (to(b"/v1/score?commit=%ff"), [422], "open"),
    "query with +": (to(b"/v1/score?commit=+false"), [422], "open"),
    "query with ;": (to(b"/v1/score?commit=false;explain=1"), [422], "open"),
    "query only &": (to(b"/v1/score?&&"), [200], "open"),
    "query with ?": (to(b"/v1/score??commit=false"), [422], "open"),
    "query long": (to(b"/v1/score?" + b"a" * 5000 + b"=1"), [422], "open"),
    "fragment": (to(b"/v1/score#x"), [200], "open"),
    "fragment after query": (to(b"/v1/score?commit=false#x"), [200], "open"),
    "percent-encoded letter": (to(b"/v1/%73core"), [200], "open"),
    "percent-encoded letters, upper case": (to(b"/v1/%73%63%6F%72%65"), [200], "open"),
    "percent-encoded slash": (to(b"/v1%2Fscore"), [404], "open"),
    "percent-encoded percent": (to(b"/v1/%2573core"), [404], "open"),
    "percent at the end": (to(b"/v1/score%"), [404], "open"),
    "percent-encoded NUL": (to(b"/v1/score%00"), [404], "open"),
    "percent-encoded question mark": (to(b"/v1/score%3Fcommit=false"), [404], "open"),
    "trailing slash": (to(b"/v1/score/"), [404], "open"),
    "double slash": (to(b"/v1//score"), [404], "open"),
    "leading double slash": (to(b"//v1/score"), [404], "open"),
    "dot segment": (to(b"/v1/./score"), [404], "open"),
    "dot-dot segment": (to(b"/v1/x/../score"), [404], "open"),
    "upper case": (to(b"/V1/SCORE"), [404], "open"),
    "path parameters": (to(b"/v1/score;a=b"), [404], "open"),
    "longer": (to(b"/v1/scores"), [404], "open"),
    "batch longer": (to(b"/v1/score/batch2"), [404], "open"),
    "root": (to(b"/"), [404], "open"),
    "asterisk": (to(b"*"), [400], "closed"),
    "asterisk with OPTIONS": (get(b"OPTIONS * HTTP/1.1"), [404], "open"),
    "no slash": (to(b"v1/score"), [400], "closed"),
    "absolute form": (to(b"http://x/v1/score"), [200], "open"),
    "absolute form, https": (to(b"https://x:99/v1/score"), [200], "open"),
    "absolute form, other host": (to(b"http://elsewhere/v1/score?commit=false"), [200], "open"),
    "absolute form, user": (to(b"http://a:b@x/v1/score"), [200], "open"),
    "absolute form, bad port": (to(b"http://x:port/v1/score"), [400], "closed"),
    "absolute form, no path": (to(b"http://x"), [404], "open"),
    "absolute form, bad IPv6": (to(b"http://[::1/v1/score"), [400], "closed"),
    "authority form": (to(b"x:80"), [400], "closed"),
    "empty target": (to(b""), [400], "closed"),
    "raw byte in path": (to(b"/v1/score\xff"), [400], "closed"),
    "UTF-8 in path": (to("/v1/scöre".encode()), [400], "closed"),
    "space in path": (to(b"/v1/sc ore"), [400], "closed"),
    "tab in path": (to(b"/v1/sc\tore"), [400], "closed"),
    "NUL in path": (to(b"/v1/sc\0ore"), [400], "closed"),
    "DEL in path": (to(b"/v1/sc\x7fore"), [400], "closed"),
    "long path": (to(b"/v1/" + b"x" * 7000), [404], "open"),
    "path at the limit": (to(b"/" + b"x" * 8189), [404], "open"),
    "path above the limit": (to(b"/" + b"x" * 8190), [400], "closed"),
    "path far above the limit": (to(b"/v1/score?" + b"x" * 70_000), [400], "closed"),
}

METHODS: dict[str, Row] = {
    "GET score": (get(b"GET /v1/score HTTP/1.1"), [405], "open"),
    "HEAD score": (get(b"HEAD /v1/score HTTP/1.1"), [405], "open"),
    "HEAD livez": (get(b"HEAD /livez HTTP/1.1"), [200], "open"),
    "OPTIONS score": (get(b"OPTIONS /v1/score HTTP/1.1"), [405], "open"),
    "PUT score": (score(line=b"PUT /v1/score HTTP/1.1"), [405], "open"),
    "PATCH score": (score(line=b"PATCH /v1/score HTTP/1.1"), [405], "open"),
    "DELETE batch": (get(b"DELETE /v1/score/batch HTTP/1.1"), [405], "open"),
    "TRACE score": (get(b"TRACE /v1/score HTTP/1.1"), [405], "open"),
    "CONNECT host": (get(b"CONNECT x:443 HTTP/1.1"), [404], "open"),
    "CONNECT score": (get(b"CONNECT /v1/score HTTP/1.1"), [404], "open"),
    "PROPFIND score": (get(b"PROPFIND /v1/score HTTP/1.1"), [405], "open"),
    "POST to a GET": (to(b"/livez"), [405], "open"),
    "lower case": (score(line=b"post /v1/score HTTP/1.1"), [400], "closed"),
    "mixed case": (score(line=b"Post /v1/score HTTP/1.1"), [400], "closed"),
    "unknown": (score(line=b"BREW /v1/score HTTP/1.1"), [400], "closed"),
    "one letter more": (score(line=b"POSTS /v1/score HTTP/1.1"), [400], "closed"),
    "one letter": (score(line=b"P /v1/score HTTP/1.1"), [400], "closed"),
    "none": (score(line=b" /v1/score HTTP/1.1"), [400], "closed"),
    "binary": (score(line=b"\x00\xff /v1/score HTTP/1.1"), [400], "closed"),
    "very long": (score(line=b"P" * 20_000 + b" /v1/score HTTP/1.1"), [400], "closed"),
    "PRI, as HTTP/2 begins": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], "closed"),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2, [400], "closed"),
    "TLS hello with line ends": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", [400], "closed"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", [400], "closed"),
    "text": (b"hello\r\n\r\n", [400], "closed"),
    "a reply": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", [400], "closed"),
    "NULs": (bytes(100), [400], "closed"),
    "JSON alone": (TX + b"\r\n\r\n", [400], "closed"),
    "Redis": (b"*1\r\n$4\r\nPING\r\n", [400], "closed"),
}

VERSIONS: dict[str, Row] = {
    "1.1": (score(line=b"POST /v1/score HTTP/1.1"), [200], "open"),
    "1.0": (score(line=b"POST /v1/score HTTP/1.0"), [200], "closed"),
    "0.9, no version": (score(line=b"POST /v1/score"), None, "any"),
    "0.9": (score(line=b"POST /v1/score HTTP/0.9"), None, "any"),
    "1.2": (score(line=b"POST /v1/score HTTP/1.2"), [400], "closed"),
    "2.0": (score(line=b"POST /v1/score HTTP/2.0"), None, "any"),
    "3.0": (score(line=b"POST /v1/score HTTP/3.0"), [400], "closed"),
    "9.9": (score(line=b"POST /v1/score HTTP/9.9"), [400], "closed"),
    "1": (score(line=b"POST /v1/score HTTP/1"), [400], "closed"),
    "1.": (score(line=b"POST /v1/score HTTP/1."), [400], "closed"),
    "1.10": (score(line=b"POST /v1/score HTTP/1.10"), [400], "closed"),
    "11.1": (score(line=b"POST /v1/score HTTP/11.1"), [400], "closed"),
    "lower case": (score(line=b"POST /v1/score http/1.1"), [400], "closed"),
    "other protocol": (score(line=b"POST /v1/score RTSP/1.0"), None, "any"),
    "comma": (score(line=b"POST /v1/score HTTP/1,1"), [400], "closed"),
    "space within": (score(line=b"POST /v1/score HTTP /1.1"), [400], "closed"),
    "two spaces before": (score(line=b"POST /v1/score  HTTP/1.1"), [200], "open"),
    "tab before": (score(line=b"POST /v1/score\tHTTP/1.1"), [400], "closed"),
    "space after": (score(line=b"POST /v1/score HTTP/1.1 "), [400], "closed"),
    "rubbish after": (score(line=b"POST /v1/score HTTP/1.1x"), [400], "closed"),
}

HOLDS: dict[str, Row] = {
    "1.0 keep-alive": (score(b"Connection: keep-alive", line=b"POST /v1/score HTTP/1.0"), [200], "open"),
    "1.0 Keep-Alive": (score(b"Connection: Keep-Alive", line=b"POST /v1/score HTTP/1.0"), [200], "open"),
    "1.0 close": (score(b"Connection: close", line=b"POST /v1/score HTTP/1.0"), [200], "closed"),
    "1.0 without a host": (request(b"POST /v1/score HTTP/1.0", KEY), [200], "closed"),
    "1.1 keep-alive": (score(b"Connection: keep-alive"), [200], "open"),
    "1.1 close": (score(b"Connection: close"), [200], "closed"),
    "1.1 CLOSE": (score(b"connection: CLOSE"), [200], "closed"),
    "close in a list": (score(b"Connection: foo, close"), [200], "closed"),
    "close first in a list": (score(b"Connection: close, foo"), [200], "closed"),
    "keep-alive and close": (score(b"Connection: keep-alive, close"), [200], "closed"),
    "close twice": (score(b"Connection: close", b"Connection: close"), [200], "closed"),
    "close, then keep-alive": (score(b"Connection: close", b"Connection: keep-alive"), [200], "closed"),
    "keep-alive, then close": (score(b"Connection: keep-alive", b"Connection: close"), [200], "closed"),
    "close with an error": (score(b"Connection: close", body=b"{}"), [422], "closed"),
    "close without a key": (request(b"POST /v1/score HTTP/1.1", b"Host: x", b"Connection: close"), [401], "closed"),
    "empty": (score(b"Connection:"), [200], "open"),
    "unknown": (score(b"Connection: whatever"), [200], "open"),
    "closed": (score(b"Connection: closed"), [200], "open"),
    "upgrade websocket": (score(b"Connection: Upgrade", b"Upgrade: websocket"), [200], "open"),
    "upgrade h2c": (score(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), [200], "open"),
    "upgrade without Upgrade": (score(b"Connection: Upgrade"), [200], "open"),
    "Upgrade without upgrade": (score(b"Upgrade: websocket"), [200], "open"),
    "upgrade of a GET": (get(b"GET /livez HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket"), [200], "open"),
    "Proxy-Connection": (score(b"Proxy-Connection: close"), [200], "closed"),
    "Keep-Alive": (score(b"Keep-Alive: timeout=1"), [200], "open"),
    "no host": (request(b"POST /v1/score HTTP/1.1", KEY), [400], "closed"),
    "two hosts": (score(b"Host: y"), [400], "closed"),
    "same host twice": (score(b"Host: x"), [400], "closed"),
    "empty host": (request(b"POST /v1/score HTTP/1.1", b"Host:", KEY), [200], "open"),
    "host with port": (request(b"POST /v1/score HTTP/1.1", b"Host: x:1", KEY), [200], "open"),
    "host with spaces": (request(b"POST /v1/score HTTP/1.1", b"Host: a b", KEY), [200], "open"),
    "host with a path": (request(b"POST /v1/score HTTP/1.1", b"Host: a/b", KEY), [200], "open"),
    "host with a user": (request(b"POST /v1/score HTTP/1.1", b"Host: a@b", KEY), [200], "open"),
}

HEADERS: dict[str, Row] = {
    "lower-case names": (score().replace(b"Host", b"host").replace(b"Authorization", b"authorization"), [200], "open"),
    "upper-case names": (score().replace(b"Content-Length", b"CONTENT-LENGTH"), [200], "open"),
    "no space after colon": (score().replace(b": ", b":"), [200], "open"),
    "spaces around values": (score(b"X:  \t a \t "), [200], "open"),
    "empty value": (score(b"X:"), [200], "open"),
    "blank value": (score(b"X:   "), [200], "open"),
    "same name twice": (score(b"X: 1", b"X: 2"), [200], "open"),
    "space before colon": (score(b"X : 1"), [400], "closed"),
    "space before colon of a length": (score().replace(b"Content-Length:", b"Content-Length :"), [400], "closed"),
    "tab before colon": (score(b"X\t: 1"), [400], "closed"),
    "space before name": (score(b" X: 1"), [400], "closed"),
    "folded": (score(b"X: 1", b" 2"), [400], "closed"),
    "folded with a tab": (score(b"X: 1", b"\t2"), [400], "closed"),
    "folded first line": (request(b"POST /v1/score HTTP/1.1", b" Host: x", KEY), [400], "closed"),
    "no colon": (score(b"X"), [400], "closed"),
    "no name": (score(b": 1"), [400], "closed"),
    "only a colon": (score(b":"), [400], "closed"),
    "space in name": (score(b"X Y: 1"), [400], "closed"),
    "NUL in name": (score(b"X\0: 1"), [400], "closed"),
    "NUL in value": (score(b"X: a\0b"), [400], "closed"),
    "CR in value": (score(b"X: a\rb"), [400], "closed"),
    "LF in value": (score(b"X: a\nY: b"), [400], "closed"),
    "LF in value, no colon": (score(b"X: a\nb"), [400], "closed"),
    "bell in value": (score(b"X: a\x07b"), [400], "closed"),
    "DEL in value": (score(b"X: a\x7fb"), [400], "closed"),
    "tab in value": (score(b"X: a\tb"), [200], "open"),
    "UTF-8 in name": (score("Xä: 1".encode()), [400], "closed"),
    "UTF-8 in value": (score("X: ä".encode()), [200], "open"),
    "high bytes in value": (score(b"X: \x80\xff"), [200], "open"),
    "every token character": (score(b"!#$%&'*+-.^_`|~09azAZ: 1"), [200], "open"),
    "parenthesis in name": (score(b"X(: 1"), [400], "closed"),
    "quotes in name": (score(b'"X": 1'), [400], "closed"),
    "LF line ends": (score().replace(b"\r\n", b"\n"), [400], "closed"),
    "CR line ends": (score().replace(b"\r\n", b"\r"), [400], "closed"),
    "CR CR LF": (score(b"X: 1\r"), [400], "closed"),
    "LF after the head": (score().replace(b"\r\n\r\n", b"\r\n\n"), [400], "closed"),
    "line at the limit": (score(b"X: " + b"y" * 8187), [200], "open"),
    "value at the limit": (score(b"X: " + b"y" * 8190), [200], "open"),
    "value above the limit": (score(b"X: " + b"y" * 8191), [400], "closed"),
    "value far above the limit": (score(b"X: " + b"y" * 20_000), [400], "closed"),
    "name far above the limit": (score(b"X" * 20_000 + b": y"), [400], "closed"),
    "value of a megabyte": (score(b"X: " + b"y" * 2**20), [400], "closed"),
    "100 headers": (score(*(b"X-%d: y" % n for n in range(97))), [200], "open"),
    "128 headers": (score(*(b"X-%d: y" % n for n in range(125))), [200], "open"),
    "129 headers": (score(*(b"X-%d: y" % n for n in range(126))), [400], "closed"),
    "1000 headers": (score(*(b"X-%d: y" % n for n in range(1000))), [400], "closed"),
    "many long headers": (score(*(b"X-%d: %s" % (n, b"y" * 8000) for n in range(60))), [200], "open"),
}

PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CORRELATION: dict[str, Row] = {
    "request id": (score(b"X-Request-Id: a-1"), [200], "open"),
    "request id, other case": (score(b"x-rEQUEST-iD:a-2"), [200], "open"),
    "request id, first": (request(b"POST /v1/score HTTP/1.1", b"X-Request-Id: a-3", b"Host: x", KEY), [200], "open"),
    "request id, empty": (score(b"X-Request-Id:"), [200], "open"),
    "request id, blank": (score(b"X-Request-Id: "), [200], "open"),
    "request id, spaces around": (score(b"X-Request-Id:   a-4  "), [200], "open"),
    "request id, tab": (score(b"X-Request-Id:\ta-5"), [200], "open"),
    "request id, of two words": (score(b"X-Request-Id: a b"), [200], "open"),
    "request id, quote": (score(b'X-Request-Id: a"b'), [200], "open"),
    "request id, UTF-8": (score("X-Request-Id: ä".encode()), [200], "open"),
    "request id, at the limit": (score(b"X-Request-Id: " + b"x" * 128), [200], "open"),
    "request id, above the limit": (score(b"X-Request-Id: " + b"x" * 129), [200], "open"),
    "request id, twice": (score(b"X-Request-Id: a-6", b"X-Request-Id: a-7"), [200], "open"),
    "request id, folded": (score(b"X-Request-Id: a-8\r\n b"), [400], "closed"),
    "request id, bare LF": (score(b"X-Request-Id: a-9\nHost: y"), None, "any"),
    "request id, refused body": (score(b"X-Request-Id: r-1", body=b"{}"), [422], "open"),
    "request id, no key": (request(b"POST /v1/score HTTP/1.1", b"Host: x", b"X-Request-Id: r-2"), [401], "open"),
    "request id, and a second length": (score(b"X-Request-Id: r-3", b"Content-Length: 3"), [400], "closed"),
    "request id, and chunks": (score(b"X-Request-Id: r-4", b"Transfer-Encoding: chunked"), [400], "closed"),
    "traceparent": (score(b"traceparent: " + PARENT, b"tracestate: a=1, b=2"), [200], "open"),
    "traceparent, nonsense": (score(b"Traceparent: 00-1-2"), [200], "open"),
    "traceparent, twice": (score(b"traceparent: " + PARENT, b"traceparent: " + PARENT), [200], "open"),
    "all three": (score(b"X-Request-Id: a-10", b"traceparent: " + PARENT, b"tracestate: a=1"), [200], "open"),
}

KEYS: dict[str, Row] = {
    name: (request(b"POST /v1/score HTTP/1.1", b"Host: x", *lines), statuses, "open")
    for name, lines, statuses in (
        ("ingest", [b"Authorization: Bearer {ingest}"], [200]),
        ("analyst", [b"Authorization: Bearer {analyst}"], [200]),
        ("admin", [KEY], [200]),
        ("none", [], [401]),
        ("empty", [b"Authorization:"], [401]),
        ("scheme alone", [b"Authorization: Bearer"], [401]),
        ("scheme and space", [b"Authorization: Bearer "], [401]),
        ("key alone", [b"Authorization: {admin}"], [401]),
        ("lower-case scheme", [b"Authorization: bearer {admin}"], [200]),
        ("upper-case scheme", [b"AUTHORIZATION: BEARER {admin}"], [200]),
        ("two spaces", [b"Authorization: Bearer  {admin}"], [200]),
        ("tab", [b"Authorization: Bearer\t{admin}"], [401]),
        ("space after", [b"Authorization: Bearer {admin} "], [200]),
        ("another word after", [b"Authorization: Bearer {admin} x"], [401]),
        ("quotes", [b'Authorization: Bearer "{admin}"'], [401]),
        ("basic", [b"Authorization: Basic YTpi"], [401]),
        ("wrong key", [b"Authorization: Bearer weir_admin_nonsense"], [401]),
        ("key cut short", [b"Authorization: Bearer {admin}".replace(b"}", b"}x")], [401]),
        ("high bytes", [b"Authorization: Bearer \xff\xfe"], [401]),
        ("UTF-8", ["Authorization: Bearer ключ".encode()], [401]),
        ("very long", [b"Authorization: Bearer " + b"x" * 8000], [401]),
        ("right, then wrong", [KEY, b"Authorization: Bearer x"], [200]),
        ("wrong, then right", [b"Authorization: Bearer x", KEY], [401]),
        ("twice the same", [KEY, KEY], [200]),
        ("in another header", [b"X-Api-Key: {admin}"], [401]),
        ("in Proxy-Authorization", [b"Proxy-Authorization: Bearer {admin}"], [401]),
    )
}


def _rows(*tables: dict[str, Row]) -> list[object]:
    return [pytest.param(*row, id=name) for table in tables for name, row in table.items()]


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(PATHS))
def test_targets_are_answered_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """However a path or a query is written, both lanes take it for the same."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(METHODS, VERSIONS))
def test_methods_versions_and_noise_are_answered_alike(
    lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End"
) -> None:
    """Methods that are not ours, versions of all kinds, other protocols: the same reply, and the same end."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(HOLDS))
def test_connections_are_held_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """What a request says about its connection and its host is understood alike."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(HEADERS))
def test_headers_are_read_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """Odd, long, many and forbidden headers: none is taken in one lane and refused in the other."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(CORRELATION))
def test_ids_of_requests_are_read_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """What a request brings along to be found again is given back by both lanes, or by none."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(KEYS))
def test_keys_open_both_lanes_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """No spelling of a key gets in by one lane alone."""
    lanes.check(sent, statuses, end)


def test_roles_hold_after_the_lane_has_changed(lanes: "Lanes") -> None:
    """A key that may score may not list tiers, on the same connection, before and after."""
    ingest = b"Authorization: Bearer {ingest}"
    tiers = b"GET /v1/tiers HTTP/1.1\r\nHost: x\r\n" + ingest + b"\r\n\r\n"
    one = request(b"POST /v1/score HTTP/1.1", b"Host: x", ingest)
    lanes.check([one, tiers, one], [200, 403, 200], "open")
