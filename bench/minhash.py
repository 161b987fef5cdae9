"""Compute MCRIT's MinHash of each function of the held-out libraries, for bench/retrieval.py.

    python -m venv minhash && minhash/bin/pip install smda==5.0.1 mcrit==1.9.0
    minhash/bin/python bench/minhash.py --packages experiment_data/packages/ --work out-retrieval/

Needs nothing else, and is not part of this project's environment, as MCRIT brings a server and a
database. smda disassembles by itself and uses no symbols. The row is models/minhash.npz.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from mcrit.config.MinHashConfig import MinHashConfig
from mcrit.config.ShinglerConfig import ShinglerConfig
from mcrit.minhash.MinHasher import MinHasher
from smda.Disassembler import Disassembler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiment_data"))
from recipes import RECIPES, TEST, VALIDATION

BASE = 0x400000  # where angr puts files whose addresses begin at 0


def main() -> None:
    """Write the row."""
    parser = argparse.ArgumentParser(description="MinHash of the held-out libraries' functions")
    parser.add_argument("--packages", type=Path, default=Path("experiment_data/packages/"))
    parser.add_argument("--work", type=Path, default=Path("out-retrieval/"))
    parser.add_argument("--levels", nargs="+", default=["O0", "O3"])
    given = parser.parse_args()
    hasher = MinHasher(MinHashConfig(), ShinglerConfig())
    hashes, counts, addresses, signatures = [], [], [], []
    manifest = json.loads((given.packages / "manifest.json").read_text(encoding="utf-8"))
    for folder, entry in manifest.items():
        package = entry["package"]
        setting = entry["release"], entry["compiler"]
        if package not in {*TEST, *VALIDATION} or entry["level"] not in given.levels:
            continue
        if setting != ("bookworm", "gcc"):
            continue
        programs = {Path(program).name for program in RECIPES[package].programs}
        for name, sha256 in entry["files"].items():
            if not name.endswith(".so") | (name in programs):
                continue
            file = given.packages / "binaries" / folder / name
            report = Disassembler().disassembleFile(str(file))
            kept = [f for f in report.getFunctions() if hasher.isMinHashableFunction(f)]
            shift = 0 if report.base_addr else BASE
            hashes.append(sha256)
            counts.append(len(kept))
            addresses += [f.offset + shift for f in kept]
            signatures += [
                hasher.calculateMinHashFromStorage((i, f)).getMinHashInt()
                for i, f in enumerate(kept)
            ]
            print(f"{file}: {len(kept):,} functions", flush=True)
    with (given.work / "models" / "minhash.npz").open("wb") as out:
        np.savez_compressed(
            out,
            sha256=np.array(hashes, "U64"),
            offsets=np.append(0, np.cumsum(counts)),
            address=np.array(addresses, np.uint64),
            signature=np.array(signatures, np.uint8),
        )


if __name__ == "__main__":
    main()
