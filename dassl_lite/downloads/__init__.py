"""Downloads: one resuming fetcher, which datasets and CLIP weights share, and the installation of a dataset's files.

`fetch` downloads one file over HTTP or from Google Drive and checks it, `archives` unpacks untrusted archives safely,
`sources` lists where each dataset's files come from, and `preparation` puts the three together: `prepare(name, root)`
downloads, verifies and unpacks whatever a dataset still lacks. `url` holds the two functions that Dassl's users call.
"""

from __future__ import annotations

from dassl_lite.downloads.preparation import prepare
from dassl_lite.downloads.sources import SOURCES

__all__ = ["SOURCES", "prepare"]
