"""Bring the newest backup of a run into scratch, where `kit.run.discovery` finds it, before training starts.

A store that cannot be asked is asked again for some minutes; then the start ends, for it may hold what is further than
anything here. Where the newest backup is damaged there, the one before it is fetched.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.backup.download import LOCAL, WAIT_S, Say, Sleep, bring, holds
from kit.backup.manifests import Manifest, order, position
from kit.backup.secrets import denied, describe, limit, patiently, refused
from kit.backup.stores import Store
from kit.backup.upload import read_news
from kit.config import Config
from kit.data import find
from kit.errors import ConfigError, KitError
from kit.kaggle import session
from kit.store import disk, trust
from kit.store.folder import RunFolder
from kit.store.peek import read_facts

SHORT_WAIT_S = 7.0  # seconds to wait for a store that fails, where a backup is not required
LOOK_S = 60  # seconds that a store may take to answer
AGAIN_S = 2.0  # before a second look, where an empty disk finds nothing: a list may be an old one
WITHOUT = "Run again when it answers, or without a backup: kit.backup_required=False."


def fetch(config: Config, resume: str, opened: Callable[[str], Store], say: Say, sleep: Sleep = time.sleep) -> None:
    """Fetch what is further than the run folder, and prove that the store can be used.

    Args:
        config: The settings; `kit.backup` is set.
        resume: As of `kit train`: only `auto` fetches.
        opened: Opens the store of an address.
        say: Prints one line for the user.
        sleep: Pauses.

    Raises:
        ConfigError: The store turned the key away, or holds another run and has room for one.
        KitError: The store could not be asked, or what it holds for this run could not be fetched.
    """
    address, folder = config.kit.backup, config.restored_folder
    assert address is not None
    assert folder is not None
    if resume == "never":
        disk.remove(folder)
    here = _standing(RunFolder(config.run_folder))
    try:
        store, manifests = _ask(config, opened, here, say, sleep)
    except ConfigError:
        raise
    except Exception as error:  # each client has its own
        text = f"{address} cannot be reached: {describe(error)}"
        if config.kit.backup_required:
            raise KitError(text, WITHOUT) from error
        say(f"WARNING: {text} {LOCAL}")
        return
    for name in sorted(store.odd):
        say(f"WARNING: '{name}' is no manifest of a backup, and is left out.")
    found = _choose(manifests, config, here)
    if not store.shared and resume != "never":
        _compare(manifests, found, config, here)
    if resume != "auto":
        return
    if not found:
        disk.remove(folder)  # fetched for an earlier start, and no backup of this run any more
    further = [each for each in found if here is None or order(each) > order(here)]
    if further and not holds(folder, further[0]):  # a start beside this one may have brought it
        bring(config, store, further, here is None, say, sleep)


def _ask(
    config: Config, opened: Callable[[str], Store], here: dict[str, Any] | None, say: Say, sleep: Sleep
) -> tuple[Store, list[Manifest]]:
    """Open the store and return what it holds of the run that is here, else all; ask again where that fails.

    Raises:
        ConfigError: It turned the key away.
        Exception: It cannot be asked.
    """
    address, required, run = config.kit.backup, config.kit.backup_required, here["run_id"] if here else None
    end = session.deadline(config.kit.session_hours)
    left = WAIT_S if required else SHORT_WAIT_S
    left = left if end is None else max(min(left, end - time.time() - LOOK_S), 0.0)

    late = f"{address} did not answer within {LOOK_S} s."
    late = f"error: {late} {WITHOUT}" if required else f"WARNING: {late} {LOCAL}"

    def ask() -> tuple[Store, list[Manifest]]:
        with limit(LOOK_S, say, late, int(required)):
            store = opened(str(address))
            store.check()
            manifests = store.manifests(run)
            if not here and not _choose(manifests, config, here):
                sleep(AGAIN_S)
                manifests = store.manifests()
            return store, manifests

    def waiting(error: Exception) -> None:
        say(f"WARNING: {address} cannot be asked: {describe(error)} It is tried for {left:.0f} s; a stop ends that.")

    try:
        return patiently(ask, left, waiting, lambda error, _: refused(error), sleep)
    except Exception as error:
        if isinstance(error, ConfigError) or not (refused(error) or denied(error)):
            raise
        raise ConfigError(
            f"{address} cannot be used: {describe(error)}", "Check its token and kit.backup=..."
        ) from error


def _compare(manifests: list[Manifest], found: list[Manifest], config: Config, here: dict[str, Any] | None) -> None:
    """Make sure that a store with room for one run holds this one, or none.

    Raises:
        ConfigError: It holds another one.
    """
    own = here["run_id"] if here else found[0]["run_id"] if found else None
    if manifests and manifests[0]["run_id"] != own and not read_news(config.run_folder).get("anew"):
        other = f"{manifests[0]['identity'].get('model')}, {position(manifests[0])}"
        raise ConfigError(
            f"{config.kit.backup} holds another run ({other}) and has room for one.",
            "Choose another with kit.backup=..., or put a new run in its place with --resume never.",
        )


def _standing(folder: RunFolder) -> dict[str, Any] | None:
    """Return what the furthest good checkpoint in the run folder says of itself."""
    found = []
    for path in (folder.latest, folder.previous):
        with contextlib.suppress(KitError):
            trust.verify(path)
            found.append(read_facts(path))
    return max(found, key=order, default=None)


def _choose(manifests: list[Manifest], config: Config, here: dict[str, Any] | None) -> list[Manifest]:
    """Choose the backups of the run that is here; else of the same model and classes, first of the same `kit.run`.

    The training process compares all that makes a run the same; this spares a download.

    Returns:
        Those of one run, the furthest first.
    """
    if here is None:
        same = {
            "model": Path(str(config.get("model"))).stem,
            "names": find.resolve(str(config.get("data")), config.classifies).trained(config),
        }
        replaced = {run for manifest in manifests for run in manifest["replaces"]}
        fits = [
            manifest
            for manifest in manifests
            if manifest["run_id"] not in replaced and {key: manifest["identity"].get(key) for key in same} == same
        ]
        here = max(fits, key=lambda each: (each.get("run") == config.kit.run, each["step"]), default={"run_id": None})
    own = [manifest for manifest in manifests if manifest["run_id"] == here["run_id"]]
    return sorted(own, key=lambda each: (order(each), each["time"]), reverse=True)
