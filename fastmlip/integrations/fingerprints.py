"""``make fingerprints``: those of the installed hosts' classes, and whether each is known.

A version whose fingerprints are all known needs nothing. For one that is new, read what changed in
the class, mend the fast module where it matters, run the tests, and add the line that is printed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator

from fastmlip.integrations.forwards import fingerprint
from fastmlip.integrations.hosts import HOSTS


def installed() -> Iterator[tuple[str, str, str, bool]]:
    """Path, fingerprint, version of the package and whether that fingerprint is known, for every
    class of a package that is there."""
    for path, versions in {p: v for host in HOSTS for p, v in host.known.items()}.items():
        module, _, name = path.rpartition(".")
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        try:
            cls = getattr(importlib.import_module(module), name)
        except (
            ImportError,
            AttributeError,
            ValueError,
        ) as error:  # a host may refuse another's e3nn
            yield path, f"none: {error}", "", False
            continue
        found, top = fingerprint(cls), module.partition(".")[0]
        distributions = importlib.metadata.packages_distributions()[top]
        version = f"{top} {importlib.metadata.version(distributions[0])}"
        yield path, found, version, found in versions


if __name__ == "__main__":
    for path, found, version, is_known in installed():
        print(f'"{path}": {{"{found}": "{version}"}}', "" if is_known else "  # NOT KNOWN")
