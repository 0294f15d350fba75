"""`oaml download`, against a server of its own: whole, resumed, wrong, gone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest

from oaml.errors import OamlError
from oaml.main import main
from oaml.support import download as module
from oaml.support.download import DOWNLOADS, digest_of, fetch, place

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`; remembers which ranges were asked for."""

    ranges = True
    breaks_after: int | None = None
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast(Server, self.server)
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if self.path != "/file":
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: server.breaks_after])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.asked = []
    thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def address(server: Server, name: str = "file") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


@pytest.fixture
def table(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table names the local server, and downloads lie in the folder that is returned."""
    monkeypatch.setenv("OAML_HOME", str(tmp_path / "home"))
    for name, entry in DOWNLOADS.items():
        served = replace(entry, address=address(server), sha256=entry.sha256 and DIGEST)
        monkeypatch.setitem(DOWNLOADS, name, served)
    return tmp_path / "home"


def test_the_table() -> None:
    for name, entry in DOWNLOADS.items():
        assert entry.address.startswith("https://")
        assert entry.revision in entry.address
        assert entry.licence
        assert "https://" in entry.citation
        assert entry.sha256 is None or (len(entry.sha256) == 64 and int(entry.sha256, 16))
        assert place(name).name == entry.file


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--list"]) == 0
    printed = capsys.readouterr().out
    for name, entry in DOWNLOADS.items():
        for said in (
            name,
            entry.licence,
            entry.commercial,
            entry.address,
            entry.citation,
            entry.sha256 or "--sha256",
        ):
            assert said in printed
    assert main(["download"]) == 2
    assert "yunet, " in capsys.readouterr().err


def test_a_colour_order_lies_beside_the_weights_that_it_is_of(table: Path, server: Server) -> None:
    assert main(["download", "adaface-ir101-webface12m"]) == 0
    assert main(["download", "adaface-ir101-webface12m"]) == 0
    file = place("adaface-ir101-webface12m")
    assert sorted(path.name for path in table.iterdir()) == [file.name, f"{file.name}.yaml"]
    assert (table / f"{file.name}.yaml").read_text() == "color_space: RGB\n"
    assert main(["download", "w600k-mbf"]) == 0
    assert not place("w600k-mbf").with_name("w600k_mbf.onnx.yaml").exists()
    assert len(server.asked) == 2


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OAML_HOME", str(tmp_path))
    assert module.home() == tmp_path
    monkeypatch.delenv("OAML_HOME")
    assert module.home() == Path.home() / ".cache" / "oaml"


def test_whole(table: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "yunet"]) == 0
    assert place("yunet").read_bytes() == CONTENT
    assert [path.name for path in table.iterdir()] == [DOWNLOADS["yunet"].file]
    assert "licence: MIT" in capsys.readouterr().out
    assert main(["download", "yunet"]) == 0  # nothing is fetched twice
    assert server.asked == [None]
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize("folder", [False, True])
def test_out(folder: bool, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "here"
    if folder:
        out.mkdir()
    assert main(["download", "yunet", "--out", str(out)]) == 0
    assert (out / DOWNLOADS["yunet"].file if folder else out).read_bytes() == CONTENT
    assert not table.exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_resumed(ranges: bool, server: Server, tmp_path: Path) -> None:
    server.ranges = ranges
    (tmp_path / "x.part").write_bytes(CONTENT[:70_001])
    fetch(address(server), tmp_path / "x", DIGEST)
    assert server.asked == ["bytes=70001-"]
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert not (tmp_path / "x.part").exists()


def test_a_connection_that_breaks_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.breaks_after = 100_000
    with pytest.raises(OamlError, match=r"broke off after 100,000 of 256,000 bytes.*try again"):
        fetch(address(server), tmp_path / "x", DIGEST)
    assert [path.name for path in tmp_path.iterdir()] == ["x.part"]
    with pytest.raises(OamlError, match="200,000"):
        fetch(address(server), tmp_path / "x", DIGEST)
    fetch(address(server), tmp_path / "x", DIGEST)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_a_part_that_is_whole_already(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT)
    fetch(address(server), tmp_path / "x", DIGEST)
    assert server.asked == []
    assert digest_of(tmp_path / "x") == DIGEST


def test_a_part_of_something_longer(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT * 2)
    fetch(address(server), tmp_path / "x", DIGEST)
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"", b"something else"])
def test_another_file_than_promised(part: bytes, server: Server, tmp_path: Path) -> None:
    if part:
        (tmp_path / "x.part").write_bytes(part)
    with pytest.raises(OamlError, match=r"another file than promised \(SHA-256 [0-9a-f]{64}, expected 0{64}"):
        fetch(address(server), tmp_path / "x", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_where_the_new_one_is_wrong(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(OamlError, match="promised"):
        fetch(address(server), tmp_path / "x", "0" * 64)
    assert (tmp_path / "x").read_bytes() == b"old"


def test_no_such_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OamlError, match=r"gone: no complete answer \(Not Found\)"):
        fetch(address(server, "gone"), tmp_path / "x", DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network(table: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.shutdown()
    server.server_close()
    assert main(["download", "yunet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"copy the file to {place('yunet')}" in error
    assert "--detector FILE" in error
    assert not place("yunet").exists()


def test_a_digest_of_the_users_own(
    table: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DOWNLOADS, "yunet", replace(DOWNLOADS["yunet"], sha256=None))
    assert main(["download", "yunet"]) == 1
    assert "--sha256" in capsys.readouterr().err
    assert main(["download", "yunet", "--sha256", "abc"]) == 1
    assert "64 hexadecimal digits" in capsys.readouterr().err
    assert server.asked == []
    assert main(["download", "yunet", "--sha256", DIGEST.upper()]) == 0
    assert place("yunet").read_bytes() == CONTENT


def test_a_wrong_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "everything"]) == 2
    assert "yunet" in capsys.readouterr().err


def test_a_place_that_can_not_be_written(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["download", "yunet", "--out", str(tmp_path / "file" / "x")]) == 1
    assert "could not be written" in capsys.readouterr().err
