"""What is uploaded is limited, private, and never a path."""

import io
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.app.uploads import LONGEST_NAME, shown_name, stored
from traces.errors import ConfigError


def test_a_file_is_kept_as_it_is(tmp_path: Path):
    content = bytes(range(256)) * 1000
    path = stored(io.BytesIO(content), tmp_path, len(content))
    assert path.parent == tmp_path
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stored(io.BytesIO(b"x"), tmp_path, 1) != path


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"xx", "is larger than"), (b"x" * 10**6, "larger")]
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, content: bytes, said: str):
    with pytest.raises(ConfigError, match=said):
        stored(io.BytesIO(content), tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_a_broken_connection_leaves_nothing(tmp_path: Path):
    class Broken(io.BytesIO):
        def read(self, *_) -> bytes:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        stored(Broken(), tmp_path, 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stated", "shown"),
    [
        ("conversation.csv", "conversation.csv"),
        ("../../etc/passwd", "passwd"),
        (r"C:\Users\me\trace.parquet", "trace.parquet"),
        ("..", "upload"),
        ("", "upload"),
        ("/", "upload"),
        ("<script>alert(1)</script>", "script_"),
        ("a\nb: c", "a_b_ c"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("été.csv", "_t_.csv"),
    ],
)
def test_a_name_is_for_reading(stated: str, shown: str):
    assert shown_name(stated) == shown


@given(st.text(max_size=300))
def test_no_name_is_a_path(stated: str):
    shown = shown_name(stated)
    assert 0 < len(shown) <= LONGEST_NAME
    assert shown.isascii() and shown.isprintable()
    assert Path(shown).name == shown
    assert not shown.startswith((".", "-"))
