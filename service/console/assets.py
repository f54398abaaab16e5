"""The files of the console: plain ES modules, CSS and a page (static/), and the bundle of Plotly's Python package.

All are read once and served from memory with a strong ETag; names are looked up, never joined to a path. Ours are asked for
again at every load (304 if nothing changed), Plotly's has its version in its name and is kept for a year. No page of ours has
an inline script or style, so the policy allows neither: Plotly is told by a class that its rules are in plotly.css.
"""

import gzip
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Final

import msgspec

STATIC: Final = Path(__file__).with_name("static")
PAGE: Final = "index.html"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
PLOTLY_NAME: Final = f"plotly-{importlib.metadata.version('plotly')}.min.js"
_PLOTLY_MARK: Final = "PLOTLY_BUNDLE"  # stands in our files for the bundle's name

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Asset(msgspec.Struct, frozen=True):
    """One file: its bytes, plain and gzipped, and the headers of its reply."""

    body: bytes
    gzipped: bytes
    etag: str
    headers: dict[str, str]


def load_assets() -> dict[str, Asset]:
    """Every file of ours by its name; about 90 KB. Takes 3 ms."""
    assets: dict[str, Asset] = {}
    for path in sorted(STATIC.iterdir()):
        if path.suffix in TYPES:
            body = path.read_bytes().replace(_PLOTLY_MARK.encode(), PLOTLY_NAME.encode())
            assets[path.name] = _asset(body, TYPES[path.suffix], "no-cache")
    return assets


def load_plotly() -> Asset:
    """Plotly's bundle, 4.8 MB, gzipped 1.5: takes 0.14 s, call it on another thread. Raises OSError if the package lacks it."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None, "a dependency of ours"
    assert spec.origin is not None
    body = (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    return _asset(body, TYPES[".js"], "public, max-age=31536000, immutable")


def _asset(body: bytes, content_type: str, cache: str) -> Asset:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "Content-Type": content_type,
        "Cache-Control": cache,
        "ETag": etag,
        "Vary": "Accept-Encoding",
        **SECURITY_HEADERS,
    }
    return Asset(body, gzip.compress(body, 6, mtime=0), etag, headers)
