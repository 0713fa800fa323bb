"""Writes a header with the digest of source files: write_build_id.py HEADER FILE...

The digest covers the paths as given and the contents. A header that would not change is left untouched, so that nothing
is compiled again for it.
"""

import hashlib
import sys
from pathlib import Path

header, *files = map(Path, sys.argv[1:])
digest = hashlib.sha256()
for file in sorted(files):
    content = file.read_bytes()
    digest.update(f"{file.as_posix()} {len(content)}\n".encode())
    digest.update(content)
text = f'#define MULTIKV_BUILD_ID "{digest.hexdigest()[:16]}"\n'
if not header.exists() or header.read_text() != text:
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(text)
