"""Fetches the pinned Zig wheel without pip, which bare Debian's python3 lacks.

Usage: fetch_zig.py REQUIREMENTS FOLDER. Standard library only. The wheel is found by name on the
package index (PIP_INDEX_URL or PyPI), checked against the sha256 of the requirements file before
anything of it is written into place, and unpacked with the run bit zipfile drops.
"""

import hashlib
import os
import re
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile


def pinned(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    match = re.search(r"^ziglang==(\S+) --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    if match is None:
        sys.exit(f"{path}: no line 'ziglang==VERSION --hash=sha256:...'")
    return match.groups()


def wheel_url(version):
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/ziglang/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
    request = urllib.request.Request(index, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        page = answer.read().decode()
    # The same pattern finds the file in the index's JSON (PEP 691) and HTML (PEP 503) form.
    for link in re.findall(r'"([^"\s]*/ziglang-[^"\s]*?\.whl)(?:#[^"]*)?"', page):
        if f"/ziglang-{version}-" in link and "x86_64" in link and "linux" in link:
            return urllib.parse.urljoin(index, link)
    sys.exit(f"{index} lists no x86-64 Linux wheel of ziglang {version}")


def download(url, out, expected):
    digest, done, shown = hashlib.sha256(), 0, 0
    with urllib.request.urlopen(url, timeout=60) as answer:
        total = int(answer.headers.get("Content-Length") or 0)
        while chunk := answer.read(1 << 20):
            out.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if done - shown >= 10_000_000 or done == total:
                shown = done
                print(f"  {done // 1_000_000} of {total // 1_000_000} MB", flush=True)
    if digest.hexdigest() != expected:
        sys.exit(f"{url}\n  sha256 is {digest.hexdigest()}, pinned is {expected}: refused")


def main():
    requirements, folder = sys.argv[1:]
    version, expected = pinned(requirements)
    with tempfile.TemporaryFile() as wheel:
        download(wheel_url(version), wheel, expected)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    os.chmod(os.path.join(folder, "ziglang", "zig"), 0o755)


main()
