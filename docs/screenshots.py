"""Take the README's pictures of MLflow: run the recipe with four learners, serve the pages, photograph them.

`python docs/screenshots.py [folder of earlier runs]` needs Debian's Chromium and takes some minutes.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
LEARNERS = ("sparse-probe", "mass-mean", "mean-diff", "probe")
PORT = 5099
STEERKIT = [sys.executable, "-m", "steerkit.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run_recipes(folder: Path) -> None:
    """Run the recipe once with each learner, as a user would."""
    recipe = str(ROOT / "recipes" / "expertise.yaml")
    for learner in LEARNERS:
        command = [*STEERKIT, "run", recipe, "--set", f"estimator.learner={learner}"]
        subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True)


def photograph(page: Page, addresses: dict[str, str]) -> None:
    """Open the addresses that `steerkit ui` printed, and keep what they show."""
    _open(page, addresses["last run"])
    page.get_by_placeholder("Search metric charts").fill("_accuracy|_effect|norm|auc")
    _keep(page, "layers", height=980)
    _open(page, addresses["compare runs"])
    _keep(page, "learners", height=640)
    _open(page, addresses["last sweep"])
    page.get_by_role("tab", name="Contour Plot").click()
    _keep(page, "contour", height=640)


def _open(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 1020})
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_timeout(3000)
    panel = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    if panel.count():
        panel.click()


def _keep(page: Page, name: str, *, height: int) -> None:
    page.set_viewport_size({"width": 1280, "height": height})
    page.wait_for_timeout(4000)  # plots grow into their place
    page.screenshot(path=IMAGES / f"{name}.png")


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        if len(sys.argv) == 1:
            run_recipes(folder)
        ui = subprocess.Popen(
            [*STEERKIT, "ui", "--port", str(PORT)], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        addresses = {}
        for line in ui.stdout or []:
            what, _, address = line.strip().rpartition(" ")
            if "Ctrl-C" in line:
                break
            addresses[what.strip()] = address
        while True:
            try:
                urlopen(f"http://127.0.0.1:{PORT}/health")
                break
            except OSError:
                time.sleep(0.5)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
                )
                photograph(browser.new_page(), addresses)
                browser.close()
        finally:
            ui.send_signal(signal.SIGINT)
            ui.wait(20)


if __name__ == "__main__":
    main()
