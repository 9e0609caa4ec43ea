"""Generated configuration is what the processes read, and the settings' hash tells settings apart, not machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from holdfast.local.configs import node_settings, proxy_settings, settings_hash, to_toml, write_configs
from holdfast.model.settings import NodeSettings, ProxySettings, parse_settings
from tests.local.test_layout import made


def test_what_is_written_is_what_is_read(place: Path) -> None:
    layout, file = made(place / "c")
    file = replace(file, parameters={"shared_buffers": "16MB", "log_line_prefix": '%m "q" \\ '})
    write_configs(layout, file)
    for name in file.nodes:
        text = layout.node_config(name).read_text()
        assert parse_settings(text, NodeSettings, name) == node_settings(layout, file, name)
    text = layout.proxy_config().read_text()
    assert parse_settings(text, ProxySettings, "proxy") == proxy_settings(layout, file)


def test_it_is_explained_and_holds_no_secret(place: Path) -> None:
    layout, file = made(place / "c")
    write_configs(layout, file)
    text = layout.node_config("n1").read_text()
    assert "# port to listen on\n" in text
    for name in ("superuser", "replication", "api-token", "read-token", "app"):
        assert layout.read_secret(name) not in text


def test_a_cluster_of_before_there_was_a_token_for_readers_has_none(place: Path) -> None:
    layout, file = made(place / "c")
    assert node_settings(layout, file, "n1").api.read_token_file == layout.secret_file("read-token")
    layout.secret_file("read-token").unlink()
    assert node_settings(layout, file, "n1").api.read_token_file is None


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_survives(parameters: dict[str, str]) -> None:
    layout, file = _somewhere()
    settings = node_settings(layout, replace(file, parameters=parameters), "n1")
    assert parse_settings(to_toml(settings, "t"), NodeSettings, "t") == settings


def test_the_hash_is_the_same_on_another_machine_and_another_for_other_settings(place: Path) -> None:
    layout, file = made(place / "c")
    elsewhere, other = made(place / "d")
    assert file.ports != other.ports
    assert settings_hash(layout, file) == settings_hash(elsewhere, other)
    assert settings_hash(layout, file).startswith("sha256:")
    changed = replace(file, parameters={"fsync": "off"})
    assert settings_hash(layout, changed) != settings_hash(layout, file)


def _somewhere() -> tuple:  # type: ignore[type-arg]
    from holdfast.local.layout import Layout
    from tests.local.test_layout import cluster_file

    return Layout(Path("/nowhere")), cluster_file()
