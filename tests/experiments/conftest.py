"""A stand-in experiment beside the real ones, and the command line called in this process."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

import experiments
from experiments.__main__ import main

STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture(scope="session")
def standin_folder(tmp_path_factory):
    """The experiment `shouting`, and `whispering`, which is the same, in a folder of their own."""
    folder = tmp_path_factory.mktemp("standins")
    for name in ("shouting", "whispering"):
        shutil.copy(STANDIN, folder / f"{name}.py")
    return folder


@contextmanager
def known(folder):
    """While it lasts, the experiments of the folder are known too; never longer, for other tests count them."""
    experiments.__path__.append(str(folder))
    try:
        yield
    finally:
        experiments.__path__.remove(str(folder))


@pytest.fixture
def standins(standin_folder):
    """The stand-ins are known during the test."""
    with known(standin_folder):
        yield


@pytest.fixture
def call(standins, tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder; gives the exit code and what was printed to both streams."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def refused(call):
    """Calls the command line and gives the one sentence on stderr, after exit code 2 and nothing on stdout."""

    def refused(*words):
        code, out, err = call(*words)
        assert code == 2
        assert out == ""
        assert len(err.splitlines()) == 1
        assert "Traceback" not in err
        return err.strip()

    return refused


@pytest.fixture(scope="session")
def finished(standin_folder, tmp_path_factory):
    """The work folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with known(standin_folder):
        assert main(["train", "shouting", "--workdir", str(folder), "--steps", "3"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def write():
    """Writes a text file and gives its path."""

    def write(path, text):
        path.write_text(text)
        return path

    return write


@pytest.fixture
def files():
    """What a folder holds: path to bytes."""

    def files(folder):
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    return files
