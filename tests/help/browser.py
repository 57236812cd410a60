"""A notebook in a real browser: a Jupyter server in a folder of the test's own, and what a person does there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Error, Page, sync_playwright

from kit.kaggle import session

CHROMIUM = "/usr/bin/chromium"
OFFLINE = (  # the browser talks to this machine and to nobody else
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
LAB_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells stay in the page, to be looked at
    "docmanager-extension/plugin": {"autosave": False},
}


@dataclass(frozen=True)
class Front:
    """One front end.

    Attributes:
        venv: The environment that holds it.
        server: The module that is run, and its options.
        base: The server's base URL.
        page: What is opened, below it.
        ready, run_all, restart: JavaScript: whether the notebook can run, and the two commands.
        stop: The stop button.
        dark: JavaScript that changes to the dark theme, or nothing.
        kaggle: Whether the environment says that this is Kaggle.
    """

    venv: Path
    server: tuple[str, ...]
    base: str
    page: str
    ready: str
    run_all: str
    restart: str
    stop: str
    dark: str = ""
    kaggle: bool = False


def _lab(venv: str, base: str, kaggle: bool) -> Front:
    return Front(
        venv=session.REPOSITORY / venv,
        server=(
            "jupyterlab",
            "--LabApp.expose_app_in_browser=True",
            "--ServerApp.token=",
            "--ServerApp.base_url={base}",
        ),
        base=base,
        page="lab/tree/train.ipynb",
        ready="!!document.querySelector('.jp-NotebookPanel .jp-CodeCell') && "
        "jupyterapp.shell.currentWidget.sessionContext.isReady && "
        "/idle|starting/.test(jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status)",
        run_all="jupyterapp.commands.execute('notebook:run-all-cells')",
        restart="jupyterapp.commands.execute('kernelmenu:restart')",
        stop=".jp-NotebookPanel-toolbar :is([data-command='notebook:interrupt-kernel'], [title^='Interrupt']):visible",
        dark="jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})",
        kaggle=kaggle,
    )


FRONTS = {
    "lab4": _lab(os.environ.get("KIT_VENV", ".venv"), "/", kaggle=False),
    "lab3": _lab(os.environ.get("KIT_VENV_KAGGLE", ".venv-kaggle"), "/k/1/abc/proxy/", kaggle=True),
    "notebook6": Front(
        venv=session.REPOSITORY / os.environ.get("KIT_VENV_KAGGLE", ".venv-kaggle"),
        server=("notebook", "--NotebookApp.token=", "--NotebookApp.base_url={base}"),
        base="/k/1/abc/proxy/",
        page="notebooks/train.ipynb",
        ready="!!window.Jupyter && !!Jupyter.notebook && Jupyter.notebook._fully_loaded && "
        "!!Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()",
        run_all="Jupyter.notebook.execute_all_cells()",
        restart="Jupyter.notebook.kernel.restart()",
        stop="button[data-jupyter-action='jupyter-notebook:interrupt-kernel']",
        kaggle=True,
    ),
}


@contextlib.contextmanager
def serving(front: Front, place: Path) -> Iterator[Server]:
    """Start the server of a front end in `place/working`, with nothing of this user's own settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = place / "home"
    for name, values in LAB_SETTINGS.items():
        file = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    config = home / "config/labconfig/page_config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    options = [word.replace("{base}", front.base) for word in front.server[1:]]
    command = [str(front.venv / "bin/python"), "-m", front.server[0], "--no-browser", "--allow-root", *options]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("KAGGLE", "JUPYTER"))},
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "KIT_REPO": str(session.REPOSITORY),
        "KIT_REF": "HEAD",
        **{f"KIT_{name.upper()}": str(place / name) for name in ("working", "input", "scratch")},
    }
    environment.pop("PYTHONPATH", None)
    if front.kaggle:
        environment |= {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "KIT_SESSION_START": str(time.time())}
    with open(place / "server.log", "w") as log:
        process = subprocess.Popen(
            [*command, f"--port={port}"], cwd=place / "working", env=environment, stdout=log, stderr=log
        )
    server = Server(f"http://127.0.0.1:{port}{front.base}", home / "runtime")
    try:
        wait_until(lambda: bool(server.get("api")), 60, f"the server starts; see {place / 'server.log'}")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass
class Server:
    """A Jupyter server.

    Attributes:
        url: Where it listens.
        runtime: Its folder for what runs.
    """

    url: str
    runtime: Path

    def get(self, path: str) -> Any:
        """Ask its REST interface; nothing while it does not answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:  # noqa: S310
                return json.load(answer)
        except (urllib.error.URLError, OSError):
            return None

    def kernel(self) -> int:
        """Return the process of the only kernel."""
        name = self.get("api/kernels")[0]["id"]
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"kernel-{name}.json".encode() in (entry / "cmdline").read_bytes():
                    return int(entry.name)
        raise AssertionError(f"no process of kernel {name}")


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Start Debian's chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OFFLINE))
        try:
            yield browser
        finally:
            browser.close()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something to become true."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds:.0f} s: {what}"
        time.sleep(0.2)


class Notebook:
    """The notebook in a page, as a person sees it."""

    def __init__(self, page: Page, front: Front, server: Server) -> None:
        self.page, self.front, self.server = page, front, server
        page.set_default_timeout(60_000)

    def open(self) -> None:
        """Open it and wait until it can run."""
        self.page.goto(self.server.url + self.front.page)
        self.page.wait_for_function(self.front.ready, timeout=120_000)

    def run_all(self) -> None:
        """«Run all cells»."""
        self.page.evaluate(f"() => {{ {self.front.run_all} }}")

    def stop(self) -> None:
        """Press the stop button."""
        self.page.locator(self.front.stop).first.click()

    def dismiss(self) -> bool:
        """Close the dialog that says that the kernel has died, and tell whether there was one."""
        for button in self.page.locator(".jp-Dialog-button.jp-mod-accept, .modal.in .btn-primary").all():
            with contextlib.suppress(Exception):
                button.click(timeout=2000)
                return True
        return False

    def state(self) -> str:
        """Return what the dashboard of the training cell is headed."""
        return self.text(".kit-head b")

    def text(self, selector: str) -> str:
        """Return the text of the first such element; empty where there is none."""
        found = self.page.locator(f".kit {selector}")
        return (found.first.text_content() or "") if found.count() else ""

    def wait_for_state(self, state: str, seconds: float = 120) -> None:
        """Wait until the dashboard is headed so."""
        wait_until(lambda: self.state() == state, seconds, f"the dashboard says «{state}», not «{self.state()}»")

    def moving(self) -> tuple[str, ...]:
        """Return what moves: the widths of the bars and the curves."""
        script = (
            "() => [...document.querySelectorAll('.kit-bar i')].slice(0, 2).map(e => e.style.width)"
            ".concat([...document.querySelectorAll('.kit-plot path[stroke]')].map(e => e.getAttribute('d')))"
        )
        return tuple(self.page.evaluate(script))

    def offers(self, name: str) -> bool:
        """Tell whether the training cell has a link to a file."""
        return self.page.locator(".kit-files").first.locator(f"a[download='{name}']").count() > 0

    def download(self, name: str, folder: Path) -> tuple[Path, str]:
        """Click on a link of the training cell; return the file and the checksum that was shown beside it."""
        files = self.page.locator(".kit-files").first
        script = (
            "(files, name) => { let link = files.querySelector(`a[download='${name}']`), sum = link.closest('b');"
            " while (!sum.matches('.kit-sum')) sum = sum.nextElementSibling;"
            " return [link.href.replace(/.*[/]/, ''), sum.textContent]; }"
        )
        for _ in range(5):  # a newer file may take its place between look and click, or in mid-click
            with contextlib.suppress(Error):
                second_name, shown = files.evaluate(script, name)
                with self.page.expect_download(timeout=10_000) as started:
                    files.locator(f"a[download='{name}']").click()
                if started.value.url.endswith(second_name):
                    break
            self.page.wait_for_timeout(1000)
        target = folder / name
        started.value.save_as(target)
        assert started.value.url.endswith(second_name)
        assert started.value.suggested_filename == name
        return target, shown.removeprefix("sha256 ")
