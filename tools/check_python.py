"""Refuses, in one line with the way out, a Python that cannot make the environment. Runs on any Python, so that it can say so."""

import sys

OLDEST, NEWEST = (3, 11), (3, 13)


def complaint(version, has_venv):
    """The complaint about an interpreter and the way out, or None where it will do."""
    name = "%s is Python %d.%d" % (sys.executable, version[0], version[1])
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        age = "old" if tuple(version[:2]) < OLDEST else "new"
        return "%s, too %s: sela-tf needs 3.11, 3.12 or 3.13. Name one, as in: make demo PYTHON=python3.12" % (name, age)
    if not has_venv:
        return (
            "%s without venv: on Debian or Ubuntu, apt install python%d.%d-venv; or name another, as in: make demo PYTHON=python3.12"
            % (
                name,
                version[0],
                version[1],
            )
        )
    return None


if __name__ == "__main__":
    try:
        import ensurepip
        import venv

        found = bool(ensurepip and venv)
    except ImportError:
        found = False
    problem = complaint(sys.version_info, found)
    if problem:
        sys.exit("error: " + problem)
