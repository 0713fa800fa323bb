"""Writes a library's manifest: write_manifest.py MANIFEST BUILD_ID_HEADER NAME TOOLKIT TORCH ARCHITECTURE...

Run after the library is linked, in the root of the sources. The platform layer reads the manifest before it opens the
library.
"""

import json
import re
import sys
from pathlib import Path


def macro(header: str, name: str) -> str:
    """The value of a macro that the header defines."""
    match = re.search(rf"^#define {name} (.+)$", Path(header).read_text(), re.MULTILINE)
    if match is None:
        sys.exit(f"{header} does not define {name}")
    return match[1].strip()


manifest, build_id_header, name, toolkit, torch, *architectures = sys.argv[1:]
fields = {
    "name": name,
    "toolkit": toolkit,
    "torch": torch,
    "architectures": architectures,
    "abi_version": int(macro("csrc/c_api.h", "MULTIKV_ABI_VERSION")),
    "build_id": macro(build_id_header, "MULTIKV_BUILD_ID").strip('"'),
}
Path(manifest).write_text(json.dumps(fields) + "\n")
