"""Refuses, in one line with the way out, a Python that cannot make the environment. Runs on any Python, so that it can say so."""

import sys

PYTHONS = ((3, 11), (3, 12), (3, 13))
# The Pythons for which the older releases of TensorFlow have wheels.
LANES = {"2.15": PYTHONS[:1], "2.17": PYTHONS[:2], "2.19": PYTHONS[:2]}


def complaint(version, has_venv, tensorflow=None):
    """The complaint about an interpreter and the way out, or None where it will do; for an older release of TensorFlow if one is named."""
    name = "%s is Python %d.%d" % (sys.executable, version[0], version[1])
    pythons = LANES[tensorflow] if tensorflow else PYTHONS
    needed = " or ".join("%d.%d" % python for python in pythons)
    what, command = "sela-tf", "make demo PYTHON=python3.12"
    if tensorflow:
        what, command = "TensorFlow " + tensorflow, "make test-tf TF=%s PYTHON=python3.11" % tensorflow
    if tuple(version[:2]) not in pythons:
        age = "old" if tuple(version[:2]) < pythons[0] else "new"
        return "%s, too %s: %s needs %s. Name one, as in: %s" % (name, age, what, needed, command)
    if not has_venv:
        package = "python%d.%d-venv" % (version[0], version[1])
        return "%s without venv: on Debian or Ubuntu, apt install %s; or name another, as in: %s" % (name, package, command)
    return None


if __name__ == "__main__":
    try:
        import ensurepip
        import venv

        found = bool(ensurepip and venv)
    except ImportError:
        found = False
    problem = complaint(sys.version_info, found, *sys.argv[1:])
    if problem:
        sys.exit("error: " + problem)
