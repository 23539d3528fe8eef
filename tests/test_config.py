"""Configuration: flag > environment > file > default for every option, and each bad value names its source."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from node.config import Config, check_address, load
from node.errors import InvalidRequest

# Three values for each option, as a flag, a variable and a TOML literal give them.
VALUES: dict[str, tuple[object, str, str]] = {
    "join": ("none", "10.0.0.1:7421", '"auto"'),
    "model": ("a.gguf", "b.gguf", '"c.gguf"'),
    "backend": ("fake", "llama", '"auto"'),
    "url": ("http://a/v1", "http://b/v1", '"http://c/v1"'),
    "candidates": (3, "4", "5"),
    "strategy": ("majority", "quality", '"fastest"'),
    "quorum": ("strict", "half", '"strict"'),
    "early_stop": ("off", "exact", '"off"'),
    "ensemble": ("off", "auto", '"off"'),
    "slots": (3, "4", "5"),
    "ctx": (512, "1024", "2048"),
    "kv_memory": (3, "4", "5"),
    "kv_disk": (3, "4", "5"),
    "draft": (3, "4", "5"),
    "kv_type": ("q8_0", "f16", '"q8_0"'),
    "swa": ("small", "full", '"small"'),
    "threads": (3, "4", "5"),
    "gpu_layers": (0, "-1", "5"),
    "pool": ("4", "auto", '"1.5"'),
    "max_memory": ("4", "512MiB", '"1.5"'),
    "borrow": ("even", "no", '"auto"'),
    "port": (7001, "7002", "7003"),
    "mesh_port": (7001, "7002", "7003"),
    "http_port": (7001, "7002", "7003"),
    "http_host": ("127.0.0.2", "::1", '"127.0.0.3"'),
    "http_cert": ("/a", "/b", '"/c"'),
    "http_key": ("/a", "/b", '"/c"'),
    "api_key": ("a", "b,c", '"d"'),
    "interface": ("10.0.0.1", "10.0.0.2,::1", '"10.0.0.3"'),
    "data_dir": ("/a", "/b", '"/c"'),
    "token": ("a", "b", '"c"'),
    "name": ("a", "b", '"c"'),
    "log": ("json", "text", '"json"'),
    "queue": (3, "4", "5"),
    "replicas": ("3", "all", '"0"'),
    "durability": ("local", "peer", '"local"'),
    "disk_budget": (3, "4", "5"),
    "sync_mbps": (3, "4", "5"),
    "sync_codec": ("lz4", "zstd", '"none"'),
}
NAMES = [f.name for f in fields(Config)]


def as_typed(name: str, text: str) -> object:
    text = text.strip('"')
    return int(text) if isinstance(VALUES[name][0], int) else text


def test_every_option_is_tried_here() -> None:
    assert sorted(VALUES) == sorted(NAMES)
    assert all(f.metadata["help"] for f in fields(Config))


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(name: str, tmp_path: Path) -> None:
    flag, variable, literal = VALUES[name]
    file = tmp_path / "conclave.toml"
    file.write_text(f"{name} = {literal}\n")
    environ = {f"CONCLAVE_{name.upper()}": variable}
    assert getattr(load({name: flag}, environ, file), name) == flag
    assert getattr(load({}, environ, file), name) == as_typed(name, variable)
    assert getattr(load({name: None}, {f"CONCLAVE_{name.upper()}": ""}, file), name) == as_typed(name, literal)
    assert load({}, {}, tmp_path / "none.toml") == Config()


BAD: dict[str, list[object]] = {
    "join": ["", "host", "host:0", "host:65536", "host:99999999", "a:1,", "a b:1", "::1:7421"],
    "backend": ["gpu", ""],
    "candidates": [-1, 65, "many", "1.5", True],
    "strategy": ["vote", "MAJORITY"],
    "quorum": ["all"],
    "early_stop": ["yes", ""],
    "ensemble": ["on", "yes"],
    "slots": [0, 257, "", "x"],
    "ctx": [1, 63, (1 << 20) + 1],
    "kv_type": ["f32"],
    "swa": ["none"],
    "threads": [-1, 513],
    "gpu_layers": [-2, 10_001],
    "port": [0, 65_536, -1],
    "mesh_port": [0, 65_536, "x"],
    "http_port": [-1, 65_536, "x"],
    "http_host": ["", "localhost", "0.0.0.0", "192.168.1.7", "::"],
    "api_key": ["gehe\u00fcm", "a\u0080b"],
    "interface": ["eth0", "10.0.0.1,wlan0"],
    "log": ["xml"],
    "queue": [0, 100_001],
    "replicas": ["some", "-1", "65", "1.5", "²"],
    "durability": ["disk"],
    "disk_budget": [-1, (1 << 24) + 1],
    "sync_mbps": [-1, "fast"],
    "sync_codec": ["gzip"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_value_names_its_source(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load({name: value}, {}, None)
    assert caught.value.message.startswith(f"--{name.replace('_', '-')}")
    if value != "":  # an empty variable counts as not given
        with pytest.raises(InvalidRequest) as caught:
            load({}, {f"CONCLAVE_{name.upper()}": str(value)}, None)
        assert caught.value.message.startswith(f"CONCLAVE_{name.upper()}")
    file = tmp_path / "conclave.toml"
    literal = str(value).lower() if isinstance(value, int) else '"' + str(value).replace("\n", "\\n") + '"'
    file.write_text(f"{name} = {literal}\n")
    with pytest.raises(InvalidRequest) as caught:
        load({}, {}, file)
    assert caught.value.message.startswith(f"{name} in {file}")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("literal", ["1.5", "true", "[1]", "1979-05-27", "{ a = 1 }"])
@pytest.mark.parametrize("name", ["slots", "model"])
def test_types_of_a_file_are_checked(name: str, literal: str, tmp_path: Path) -> None:
    file = tmp_path / "conclave.toml"
    file.write_text(f"{name} = {literal}\n")
    with pytest.raises(InvalidRequest, match=f"{name} in .*it must be a"):
        load({}, {}, file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('slots = 3\n\nport = "x"\n', "port in {} (line 3) is 'x': it must be a whole number"),
        ("# slotz = 1\n  slotz = 3\n", "slotz in {} (line 2) is not an option: did you mean slots?"),
        ('"slots" = 3000\n', "slots in {} (line 1) is 3000: it must be 1 to 256"),
        ("slots = 3\n[mesh]\nport = 3\n", "mesh in {} (line 2) is a section: an option stands in none"),
        ("a.slots = 3\n", "a in {} (line 1) is a section: an option stands in none"),
        ("port = 7000\nmesh_port = 7000\n", "port in {0} (line 1) and mesh_port in {0} (line 2) are both 7000"),
    ],
)
def test_a_fault_in_the_file_names_its_line(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "conclave.toml"
    file.write_text(content)
    with pytest.raises(InvalidRequest, match="^" + re.escape(said.format(file))):
        load({}, {}, file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "conclave.toml"
    for content in (b"slots =", b"\xff\xfe", b"slots = 1\nslots = 2"):
        file.write_bytes(content)
        with pytest.raises(InvalidRequest, match="cannot be read"):
            load({}, {}, file)
    file.write_text("slotz = 1")
    with pytest.raises(InvalidRequest, match=r"slotz in .* is not an option: did you mean slots\?"):
        load({}, {}, file)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load({}, {}, tmp_path)  # a directory
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load({}, {}, tmp_path / ("x" * 300))
    file.write_text("slots = 1\nmodel = bundled\n")
    with pytest.raises(InvalidRequest, match=r"line 2, column 9.*a text in quotes"):
        load({}, {}, file)
    assert load({}, {}, file / "below" / "conclave.toml") == Config(), "no file is there"
    file.write_bytes('name = "küche"'.encode())
    assert load({}, {}, file).name == "küche"


def test_other_variables_and_flags_are_no_business_of_ours() -> None:
    assert load({"json": True}, {"CONCLAVE_HOME": "/x", "PATH": "/bin"}) == Config()


def test_a_listener_that_leaves_this_machine_is_locked() -> None:
    for lock in ({"api_key": "secret"}, {"http_cert": "c.pem"}, {"http_port": 0}):
        assert load({"http_host": "0.0.0.0", **lock}, {}).http_host == "0.0.0.0"
    with pytest.raises(InvalidRequest, match="set CONCLAVE_API_KEY to a secret, or give a certificate"):
        load({"http_host": "0.0.0.0"}, {})


def test_lists() -> None:
    config = load({"join": "a:1, [::1]:2", "interface": "10.0.0.1, ::1,"}, {})
    assert config.join_addresses == ("a:1", "[::1]:2")
    assert config.interfaces == ("10.0.0.1", "::1")
    assert load({"join": "none"}, {}).join_addresses == load({}, {}).join_addresses == ()
    assert load({}, {}).interfaces == ()


def test_where_to_join_has_the_default_port() -> None:
    for given, meant in {
        "10.77.0.99": "10.77.0.99:7421",
        "auto, [::1]": "auto,[::1]:7421",
        "[fe80::1]": "[fe80::1]:7421",
        "localhost": "localhost:7421",
        "kitchen.local": "kitchen.local:7421",
        "10.77.0.99:1,auto": "10.77.0.99:1,auto",
    }.items():
        assert load({"join": given}, {}).join == meant
    for slip in ("atuo", "kitchen", "10.77.0", "10.77.0.99:", "10.77.0.999", "[::1", "::1", "a:1:2", "", "."):
        with pytest.raises(InvalidRequest, match="HOST:PORT"):
            load({"join": slip}, {})


def test_addresses() -> None:
    assert check_address("host.local:7421", "x") == ("host.local", 7421)
    assert check_address("[fe80::1%eth0]:1", "x") == ("fe80::1%eth0", 1)
    for text in ("[host]:1", "[]:1", ":1", "a:", "a:-1", "unix:/x:1", "a:1:2", "a:\u0661"):
        with pytest.raises(InvalidRequest, match=r"^here: .* is not an address"):
            check_address(text, "here")


def test_replicas_are_a_number_or_all(tmp_path: Path) -> None:
    file = tmp_path / "conclave.toml"
    file.write_text("replicas = 3\n")
    assert load({}, {}, file).replica_count == 3
    assert load({"replicas": "0"}, {}, file).replica_count == 0
    assert load({"replicas": "all"}, {}, file).replica_count > 1000
