"""The table in nftables on the real kernel: it keeps out whom it should, nobody else, and leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.model.errors import ConfigurationError
from holdfast.model.settings import IsolationSettings, NodeSettings, parse_settings
from holdfast.node import firewall
from holdfast.node.firewall import Firewall
from tests.node.firewall_trial import CONFIG

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
OPEN = dict.fromkeys(
    [
        "investigator",
        "stranger",
        "itself",
        "stranger at the agent",
        "stranger at a neighbour",
        "itself at a neighbour",
    ],
    "connected",
)
BOTH = "pg_hba, nftables"


def own_namespace() -> list[str]:
    """How to get a network of one's own here; skips with the reason where that cannot be."""
    missing = [program for program in ("unshare", "nft", "ip") if not shutil.which(program, path=ENVIRONMENT["PATH"])]
    if missing:
        pytest.skip(f"there is no {' and no '.join(missing)} on this machine")
    for way in (["unshare", "-n"], ["unshare", "-Urn"]):
        tried = subprocess.run([*way, "nft", "add table inet t"], env=ENVIRONMENT, capture_output=True, check=False)
        if tried.returncode == 0:
            return way
    pytest.skip("neither root nor `unshare -Urn` with nftables is possible on this machine")


@pytest.mark.live
def test_the_kernel_keeps_out_whom_it_should_until_the_node_is_back(tmp_path: Path) -> None:
    trial = [*own_namespace(), sys.executable, "-m", "tests.node.firewall_trial", str(tmp_path)]
    done = subprocess.run(trial, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    told = f"clients and peers are kept out (by {BOTH}), as n2 leads since epoch 2"
    assert found == {
        "before": OPEN,
        "held session": "reset",
        "isolated": {**OPEN, "stranger": "refused", "itself": "refused"},
        "told": told,
        "noted": True,
        "shut after a restart": True,
        "told after a restart": told,
        "resumed": [True],
        "still isolated": "refused",
        "told when back": None,
        "after": OPEN,
        "trace": [False, False],
        "journal": [["isolation.begun", BOTH], ["isolation.lifted", BOTH]],
        "trace of one that ended": [False, True],
        "trace after the setting was changed": [False, False],
    }


def settings(**isolation: object) -> NodeSettings:
    plain = parse_settings(CONFIG.format(directory="/nowhere"), NodeSettings, "here")
    return plain.model_copy(update={"isolation": IsolationSettings.model_validate(isolation)})


def test_the_rules_are_about_the_own_server_alone() -> None:
    rules = Firewall(settings(investigator_addresses=["10.1.2.3", "fd00::/8"])).rules()
    assert rules == (
        "add table inet holdfast_some_cluster_n1; delete table inet holdfast_some_cluster_n1; "
        "table inet holdfast_some_cluster_n1 { chain input { "
        "type filter hook input priority -10; policy accept; "
        "ip saddr 10.1.2.3/32 tcp dport 5432 accept; ip6 saddr fd00::/8 tcp dport 5432 accept; "
        "ip daddr 10.99.0.1 tcp dport 5432 reject with tcp reset; }; }"
    )


def test_a_machine_without_nft_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall, "_PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"isolation\.nftables is true, and there is no `nft` here: install"):
        Firewall(settings(nftables=True)).check()


def test_an_agent_that_may_not_change_the_network_is_told() -> None:
    program = "from tests.node.test_firewall import Firewall, settings; Firewall(settings(nftables=True)).check()"
    less = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if shutil.which("nft", path=ENVIRONMENT["PATH"]) is None or (less and shutil.which("setpriv") is None):
        pytest.skip("there is no nft or no setpriv on this machine")
    tried = [*less, sys.executable, "-c", program]
    done = subprocess.run(tried, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "the agent lacks CAP_NET_ADMIN: give it to it (AmbientCapabilities=CAP_NET_ADMIN" in done.stderr


@pytest.mark.parametrize("address", ["nobody", "10.0.0.0/33", "10.0.0.1; drop"])
def test_an_investigators_address_is_one(address: str) -> None:
    text = CONFIG.format(directory="/nowhere") + f'[isolation]\ninvestigator_addresses = ["{address}"]\n'
    with pytest.raises(ConfigurationError, match=r"isolation\.investigator_addresses: .*write an address"):
        parse_settings(text, NodeSettings, "here")


def test_an_investigators_role_cannot_end_its_line() -> None:
    text = CONFIG.format(directory="/nowhere") + '[isolation]\ninvestigator_role = "a\\" all trust #"\n'
    with pytest.raises(ConfigurationError, match=r"isolation\.investigator_role"):
        parse_settings(text, NodeSettings, "here")
